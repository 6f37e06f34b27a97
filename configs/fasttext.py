"""Word vectors by fastText: skip-gram over words and their character n-grams.

What:     the vector of a word is the mean of its own row and of those of its n-grams
          of three to six characters, hashed into 200,000 buckets (Bojanowski et al.
          2017), so that unseen words have vectors too; otherwise as word2vec.py.
Data:     dir=FOLDER with train.txt.gz (or train.txt) of WikiText-2, or any text in
          lines, lower-cased; words seen less than five times are left out.
Command:  python -m lm.main --config=configs/fasttext.py:dir=FOLDER
          python -m lm.convert --to=fasttext:vectors.bin --workdir=runs/fasttext
Arguments, joined by commas: dir=FOLDER, quick (the built-in text), seed=0, sets=FOLDER
          (word pairs and analogies to evaluate with: EN-WS-353-ALL.txt,
          EN-SIMLEX-999.txt, EN-RG-65.txt, questions-words.txt).
Results:  configs/README.md
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="wikitext-2", seed=0, sets="")
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.steps = "1 epoch" if arg.quick else "5 epochs"
    c.batch_size = 8 if arg.quick else 32
    c.seq_len = 256 if arg.quick else 1024  # words of a row: whole lines

    c.tokenizer = dict(
        name="word", lowercase=True, min_count=5, specials=("pad", "unk")
    )
    c.model = dict(name="word_vectors", d_model=32 if arg.quick else 100)
    c.objective = dict(
        name="word2vec",
        buckets=2000 if arg.quick else 200_000,
        min_n=3,
        max_n=6,
    )
    c["update"] = dict(name="rows", size=8)
    c.optim = dict(
        name="sgd",
        lr=0.025,
        schedule="linear",
        end_lr=0.004,  # 1e-4 in the end
        weight_decay=0.0,
        clip=0.0,
    )

    packed = (Path(arg.dir) / "train.txt.gz").exists()
    file = f"{arg.dir}/{'train.txt.gz' if packed else 'train.txt'}"
    source = dict(name="text", files=file, split="line")
    if arg.quick:
        source = dict(name="builtin", part="train")
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
    return c
