"""Sentiment of long reviews (IMDB), read in windows.

What:     an encoder fine-tuned on reviews (Maas et al. 2011) of any length: a review
          that does not fit a row is divided into windows, each a row of its label, and
          a prediction is made of the mean of their logits. The last twentieth of the
          training reviews is for dev; test is evaluated once, at the end.
Data:     the folder of aclImdb as it is: train/pos/*.txt, train/neg/*.txt, and the same
          of test, a review per file. The label is the name of the folder.
Command:  python -m lm.main --config=configs/imdb.py:dir=data/aclImdb,preset=hf \
              --config.init.source=hf:bert-base-uncased
          From scratch, the shape and the tokenizer are this config's own:
          python -m lm.main --config=configs/imdb.py:dir=data/aclImdb,scratch
Arguments, joined by commas: quick (a few steps on reviews of its own), dir=FOLDER,
          preset=bert_mini (the shape of the other run; hf: that of the directory of
          init.source=hf:DIR), scratch.
Results:  none measured: the labelled reviews were not at hand.
"""

import ml_collections

from lm.config import parse_arg

REVIEWS = (
    ("a warm and clever film , and the best i have seen this year . " * 4, "pos"),
    ("the plot is a mess from start to end and the jokes fall flat . " * 4, "neg"),
    ("i laughed from start to end", "pos"),
    ("two hours i will not get back", "neg"),
    ("beautifully shot and well acted , with a score to remember . " * 2, "pos"),
    ("dull , loud and far too long", "neg"),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, scratch=False, dir="data/aclImdb", preset="bert_tiny"
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "3 epochs"
    c.batch_size = 32
    c.seq_len = 256

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(
        name="classification", classes=2, labels=("neg", "pos"), too_long="window"
    )
    c.optim = dict(
        name="adamw",
        lr=5e-5,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )
    # What a fine-tuned run starts with; the classifier and its pooler are new.
    c.init = dict(source=None, missing=("pooler/.*", "heads/classify/.*"))
    c.tokenizer = None
    if arg.scratch or arg.quick:
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=8192, lowercase=True)
        c.optim.lr = 3e-4

    files = {
        part: dict(
            name="text",
            files=tuple(f"{arg.dir}/{part}/{label}/*.txt" for label in ("neg", "pos")),
            split="file",
            folder="label",
        )
        for part in ("train", "test")
    }
    train = dict(files["train"], part="train", holdout=0.05)
    dev = dict(train, part="heldout")
    test = files["test"]
    if arg.quick:
        records = [dict(text=text, label=label) for text, label in REVIEWS]
        train = dev = test = dict(name="memory", items=records)
        c.tokenizer.vocab_size = 200
    c.data = dict(sources=[train])
    c.evals = dict(
        dev=dict(evaluator="predictions", data=dict(sources=[dev]), every="1 epochs"),
        test=dict(evaluator="predictions", data=dict(sources=[test]), every=c.steps),
    )
    c.checkpoint = dict(
        every="1 epochs", keep_last=1, best="dev/accuracy", best_mode="max"
    )
    c.log = dict(every=20)

    if arg.quick:
        c.batch_size = 4
        c.seq_len = 32
        c.log.every = 2
    return c
