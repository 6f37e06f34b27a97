"""Word vectors by GloVe, from counts of words that stand near each other.

What:     100 dimensions, a window of ten words, x_max 10 (the program that was
          published with Pennington et al. 2014 has 10 in its demonstration, the paper
          100 for corpora of billions of words), AdaGrad at 0.05, 15 passes.
Data:     dir=FOLDER with train.txt.gz (or train.txt) of WikiText-2, or any text in
          lines, lower-cased; words seen less than five times are left out.
Command:  python -m lm.main --config=configs/glove.py:dir=FOLDER
Arguments, joined by commas: dir=FOLDER, quick (the built-in text), window=10, x_max=10,
          seed=0, sets=FOLDER (word pairs and analogies to evaluate with:
          EN-WS-353-ALL.txt, EN-SIMLEX-999.txt, EN-RG-65.txt, questions-words.txt).
Results:  configs/README.md
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, dir="wikitext-2", window=10, x_max=10, seed=0, sets=""
    )
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.steps = "2 epochs" if arg.quick else "15 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = 4096  # pairs of a row

    c.tokenizer = dict(
        name="word", lowercase=True, min_count=5, specials=("pad", "unk")
    )
    c.model = dict(name="word_vectors", d_model=32 if arg.quick else 100)
    c.objective = dict(name="glove", window=arg.window, x_max=float(arg.x_max))
    c.update = dict(name="rows", size=8)
    c.optim = dict(
        name="adagrad",
        lr=0.05,
        schedule="constant",
        weight_decay=0.0,
        clip=0.0,
        options=dict(initial_accumulator_value=1.0),
    )

    packed = (Path(arg.dir) / "train.txt.gz").exists()
    file = f"{arg.dir}/{'train.txt.gz' if packed else 'train.txt'}"
    source = dict(name="text", files=file, split="line")
    if arg.quick:
        source = dict(name="builtin", part="train")
    c.data = dict(sources=[source])
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
