"""WikiText-2 by words: the AWD-LSTM of Merity et al. 2018.

What:     3 layers of LSTM (1150 units, embeddings of 400, tied), weight drop, locked
          dropout, dropout of words, regularised states, windows of drawn lengths; SGD
          with a learning rate that follows the length of the window and, from where
          the validation loss stops improving, an average of the weights.
Data:     dir=FOLDER with train.txt.gz (or train.txt), valid.txt and test.txt of
          WikiText-2, or any text in lines.
Command:  python -m lm.main --config=configs/awd_lstm.py:dir=FOLDER
Arguments, joined by commas: dir=FOLDER, quick (a few steps on the built-in text),
          units=1150, embed=400, epochs=750, sampled=0 (words in the sum of the training
          softmax; 0 is all).
Results:  none yet; a run of the full size is for an accelerator
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        dir="wikitext-2",
        units=1150,
        embed=400,
        epochs=750,
        sampled=0,
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 10 if arg.quick else f"{arg.epochs} epochs"
    c.batch_size = 4 if arg.quick else 80
    c.seq_len = 35 if arg.quick else 70

    c.tokenizer = dict(
        name="word", kind="word", line_ends=True, specials=("unk", "eos")
    )
    c.model = dict(
        name="rnn",
        cell="lstm",
        num_layers=3,
        d_model=64 if arg.quick else arg.units,
        d_embed=32 if arg.quick else arg.embed,
        locked=True,
        dropout=0.2,
        dropout_input=0.65,
        dropout_output=0.4,
        dropout_word=0.1,
        dropout_weight=0.5,
    )
    c.objective = dict(
        name="causal_lm",
        bos=False,
        eos=False,
        borders="ignore",
        sampled=arg.sampled,
        activation=2.0,
        slowness=0.6,  # 1 for states before dropout of 0.4
    )
    c.optim = dict(
        name="sgd",
        lr=30.0,
        schedule="constant",
        clip=0.25,
        weight_decay=1.2e-6,
        average_when="valid/loss",
        average_patience=5,
    )

    packed = (Path(arg.dir) / "train.txt.gz").exists()

    def text(file: str, part: str) -> dict:
        source = dict(name="text", files=f"{arg.dir}/{file}", split="file")
        if arg.quick:
            source = dict(name="builtin", part=part)
        return dict(sources=[source], order="stream")

    c.data = text("train.txt.gz" if packed else "train.txt", "train")
    c.data.update(windows="drawn")
    batch = None if arg.quick else 10
    c.evals = dict(
        valid=dict(
            evaluator="mean", data=text("valid.txt", "heldout"), batch_size=batch
        ),
        test=dict(evaluator="mean", data=text("test.txt", "heldout"), batch_size=batch),
    )
    c.evals.valid.every = 5 if arg.quick else "1 epochs"
    c.evals.test.every = "100%"
    c.checkpoint = dict(every=5 if arg.quick else "5 epochs", keep_last=2)
    c.log = dict(every=2 if arg.quick else 100)

    if arg.quick:
        c.evals.valid.limit = c.evals.test.limit = 16
    return c
