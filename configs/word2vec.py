"""Word vectors by word2vec: skip-gram or CBOW.

What:     skip-gram with five negative samples (Mikolov et al. 2013, arXiv:1310.4546),
          100 dimensions, a window of five words, five epochs, sub-sampling at 1e-3;
          also CBOW, and hierarchical softmax.
Data:     dir=FOLDER with train.txt.gz (or train.txt) of WikiText-2, or any text in
          lines, lower-cased; words seen less than five times are left out.
Command:  python -m lm.main --config=configs/word2vec.py:dir=FOLDER
Arguments, joined by commas: dir=FOLDER, quick (the built-in text), cbow, hierarchical
          (instead of negative samples), one_hot (the baseline: no vectors but the rows
          of the identity matrix), seed=0, sets=FOLDER (word pairs and analogies
          to evaluate with: EN-WS-353-ALL.txt, EN-SIMLEX-999.txt, EN-RG-65.txt,
          questions-words.txt).
Results:  configs/README.md
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        dir="wikitext-2",
        cbow=False,
        hierarchical=False,
        one_hot=False,
        seed=0,
        sets="",
    )
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.steps = "2 epochs" if arg.quick else "5 epochs"
    c.batch_size = 32
    c.seq_len = 256 if arg.quick else 1024  # words of a row: whole lines

    c.tokenizer = dict(
        name="word", lowercase=True, min_count=5, specials=("pad", "unk")
    )
    c.model = dict(name="word_vectors", d_model=100)
    c.objective = dict(name="word2vec", architecture="cbow" if arg.cbow else "skipgram")
    update = dict(name="rows", size=8)
    if arg.hierarchical:
        c.objective.update(negatives=0, hierarchical=True, span=8)
        # The root is on every path: 64 centres at a time would move it too far.
        update["most"] = 8
    c["update"] = update
    c.optim = dict(
        name="sgd",
        lr=0.05 if arg.cbow else 0.025,
        schedule="linear",
        end_lr=0.002 if arg.cbow else 0.004,  # 1e-4 in the end
        weight_decay=0.0,
        clip=0.0,
    )

    packed = (Path(arg.dir) / "train.txt.gz").exists()
    file = f"{arg.dir}/{'train.txt.gz' if packed else 'train.txt'}"
    source = dict(name="text", files=file, split="line")
    if arg.quick:
        source = dict(name="builtin", part="train")
        c.batch_size = 32
        c.model.d_model = 32
    c.data = dict(sources=[source], pack=True)
    # Words and pairs come from files; the rows of `data` only give the frequencies.
    c.evals = dict(
        words=dict(
            evaluator="word_vectors",
            data=dict(sources=[source]),
            words=("class", "value") if arg.quick else ("city", "war", "red", "played"),
            every="100%",
        )
    )
    if arg.sets:
        names = ("EN-WS-353-ALL", "EN-SIMLEX-999", "EN-RG-65")
        c.evals.words.update(
            pairs=tuple(f"{arg.sets}/{name}.txt" for name in names),
            analogies=(f"{arg.sets}/questions-words.txt",),
            lowercase=True,
        )
    c.checkpoint = dict(every="20%", keep_last=1)
    c.log = dict(every=5)
    if arg.one_hot:  # A vector has as many numbers as there are words.
        c.job = "fit"
        c.steps = "1 epoch"  # a pass
        c.model = dict(name="one_hot")
        c.objective.subsample = 0.0
        c.evals.words.update(words=(), analogies=())
        c.checkpoint = dict(every=1, keep_last=1)
        del c["update"], c["optim"]
    return c
