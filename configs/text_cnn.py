"""Sentence classification by a convolutional network: sentiment (SST-2).

What:     filters of 3, 4 and 5 words, 100 of each, the largest value of each over the
          sentence, dropout 0.5, at most norm 3 for the weights of a class (Kim 2014).
          The words are those of the training text.
Data:     train.tsv, dev.tsv and test.tsv in a folder, `sentence<TAB>label` without a
          header.
Command:  python -m lm.main --config=configs/text_cnn.py:dir=data/sst2
Arguments, joined by commas: quick (a few steps on a dozen sentences of its own),
          dir=FOLDER, embeddings=trained (from random numbers; static: they stay as
          they are; both: two channels).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

SENTENCES = (
    ("a warm and clever film", 1),
    ("the plot is a mess", 0),
    ("i laughed from start to end", 1),
    ("two hours i will not get back", 0),
    ("beautifully shot and well acted", 1),
    ("dull , loud and far too long", 0),
    ("wonderful", 1),
    ("the jokes fall flat", 0),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/sst2", embeddings="trained")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "8 epochs"
    c.batch_size = 50
    c.seq_len = 64  # longer than any sentence

    c.tokenizer = dict(name="word", kind="word", specials=("pad", "unk"))
    c.model = dict(name="text_cnn", embeddings=arg.embeddings)
    c.objective = dict(name="classification", classes=2, summary="max")
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        schedule="constant",
        weight_decay=0.0,
        clip=0.0,
        max_norm=(("heads/classify/kernel", 3.0),),
    )
    if arg.embeddings != "trained":
        c.optim.freeze = ("static/embedding",)

    columns = dict(columns=("text", "label"), header=False)
    files = {
        part: dict(name="tsv", files=f"{arg.dir}/{part}.tsv", **columns)
        for part in ("train", "dev", "test")
    }
    if arg.quick:
        records = [dict(text=text, label=label) for text, label in SENTENCES]
        files = {part: dict(name="memory", items=records) for part in files}
    c.data = dict(sources=[files["train"]])
    c.evals = {
        part: dict(
            evaluator="predictions",
            data=dict(sources=[files[part]]),
            every=5 if arg.quick else "1 epochs",
        )
        for part in ("dev", "test")
    }
    c.checkpoint = dict(
        every=5 if arg.quick else "1 epochs",
        keep_last=1,
        best="dev/accuracy",
        best_mode="max",
    )
    c.log = dict(every=20)

    if arg.quick:
        c.batch_size = 8
        c.seq_len = 16
        c.model.update(d_embed=32, filters=8)
        c.log.every = 2
    return c
