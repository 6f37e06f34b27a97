"""Sentence classification: sentiment (SST-2), fine-tuned from a run or from scratch.

What:     the encoder of another run, or a new one, with a classifier on its first
          token (Devlin et al. 2019, section 4.1): batch 32, three epochs.
Data:     train.tsv and dev.tsv in a folder, `sentence<TAB>label` without a header.
Command:  python -m lm.main --config=configs/sst2.py:dir=data/sst2 \
              --config.init.source=runs/bert_tiny
          From scratch, the shape and the tokenizer are this config's own:
          python -m lm.main --config=configs/sst2.py:dir=data/sst2,scratch
Sweep:    python -m lm.sweep with the flags of either: five seeds, three learning rates
          (`quick`: two of each).
Arguments, joined by commas: quick (a few steps on a dozen sentences of its own),
          dir=FOLDER, preset=bert_mini (the shape of the other run; hf: that of the
          directory of init.source=hf:DIR), scratch.
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
    ("one of the best this year", 1),
    ("the jokes fall flat", 0),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, scratch=False, dir="data/sst2", preset="bert_tiny"
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "3 epochs"
    c.batch_size = 32
    c.seq_len = 64

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="classification", classes=2)
    c.optim = dict(
        name="adamw",
        lr=3e-4,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )
    # What a fine-tuned run starts with; the classifier and its pooler are new.
    c.init = dict(source=None, missing=("pooler/.*", "heads/classify/.*"))
    c.tokenizer = None
    if arg.scratch or arg.quick:
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=4096, lowercase=True)

    columns = dict(columns=("text", "label"), header=False)
    train = dict(name="tsv", files=f"{arg.dir}/train.tsv", **columns)
    dev = dict(name="tsv", files=f"{arg.dir}/dev.tsv", **columns)
    if arg.quick:
        records = [dict(text=text, label=label) for text, label in SENTENCES]
        train = dev = dict(name="memory", items=records)
        c.tokenizer.vocab_size = 200
    c.data = dict(sources=[train])
    c.evals = dict(
        dev=dict(evaluator="predictions", data=dict(sources=[dev]), every="1 epochs"),
        dev_loss=dict(evaluator="mean", data=dict(sources=[dev]), every="1 epochs"),
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


def sweep(add, arg: str) -> None:
    quick = "quick" in arg.split(",")
    for lr in (3e-4, 1e-3) if quick else (1e-4, 3e-4, 1e-3):
        for seed in range(2 if quick else 5):
            add({"optim.lr": lr}, seed=seed)
