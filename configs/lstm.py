"""WikiText-2 by words: a two-layer LSTM on contiguous streams.

What:     2 layers of 200 units (Hochreiter and Schmidhuber 1997), dropout on the inputs
          of each layer and on the outputs (Zaremba et al. 2014), the output tied to the
          embedding (Press and Wolf 2017), the state carried from batch to batch. Every
          word and the end of every line is predicted, <unk> among them, and evaluations
          read the whole text with the state carried, as the published figures do.
Data:     dir=FOLDER with train.txt.gz (or train.txt), valid.txt and test.txt of
          WikiText-2, or any text in lines.
Command:  python -m lm.main --config=configs/lstm.py:dir=FOLDER
Arguments, joined by commas: dir=FOLDER, quick (a few steps on the built-in text),
          units=200, epochs=6, sampled=2048 (words in the sum of the training softmax,
          Jozefowicz et al. 2016; 0 is all).
Results:  configs/README.md
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, dir="wikitext-2", units=200, epochs=6, sampled=2048
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 10 if arg.quick else f"{arg.epochs} epochs"
    c.batch_size = 20
    c.seq_len = 35

    c.tokenizer = dict(
        name="word", kind="word", line_ends=True, specials=("unk", "eos")
    )
    c.model = dict(
        name="rnn", cell="lstm", num_layers=2, d_model=arg.units, dropout=0.2
    )
    c.objective = dict(
        name="causal_lm", bos=False, eos=False, borders="ignore", sampled=arg.sampled
    )
    c.optim = dict(
        name="adam",
        lr=3e-3,
        schedule="wsd",
        decay="30%",
        warmup="1%",
        clip=0.5,
        weight_decay=0.0,
    )

    packed = (Path(arg.dir) / "train.txt.gz").exists()

    def text(file: str, part: str) -> dict:
        source = dict(name="text", files=f"{arg.dir}/{file}", split="file")
        if arg.quick:
            source = dict(name="builtin", part=part)
        return dict(sources=[source], order="stream")

    c.data = text("train.txt.gz" if packed else "train.txt", "train")
    c.evals = dict(
        valid=dict(evaluator="mean", data=text("valid.txt", "heldout")),
        test=dict(evaluator="mean", data=text("test.txt", "heldout")),
    )
    c.evals.valid.every = 5 if arg.quick else "1 epochs"
    c.evals.test.every = "100%"
    c.checkpoint = dict(every=5 if arg.quick else "1 epochs", keep_last=20)
    c.log = dict(every=2 if arg.quick else 100)

    if arg.quick:
        c.batch_size = 4
        c.model.d_model = 32
        c.evals.valid.limit = c.evals.test.limit = 16
    return c
