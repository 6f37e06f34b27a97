"""Distillation: a small classifier of sentiment (SST-2) learns from a large one.

What:     a two-layer encoder from scratch, whose loss is half that of the labels and
          half that of the teacher's probabilities at temperature 2 (Hinton et al. 2015,
          section 2; Turc et al. 2019). Its tokenizer is the teacher's.
Data:     train.tsv and dev.tsv in a folder, `sentence<TAB>label` without a header.
Command:  a teacher, such as a fine-tuned BERT, then its student:
          python -m lm.main --config=configs/sst2.py:dir=data/sst2,preset=hf \
              --config.init.source=hf:bert-base-uncased --workdir=runs/teacher
          python -m lm.main \
              --config=configs/distil.py:dir=data/sst2,teacher=runs/teacher
          The states of its layers too, 1 of the student as 6 of the teacher and so on
          (Jiao et al. 2020):
              --config.teacher.of="('logits','hidden')" \
              --config.teacher.layers="((0,0),(1,6),(2,12))"
Arguments, joined by commas: quick (a few steps on sentences of its own, beside
          teacher=runs/sst2-quick if it is given), dir=FOLDER, teacher=RUN or hf:DIR
          (none: the labels alone, with a tokenizer of its own), preset=bert_mini.
Results:  none measured yet.
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
    arg = parse_arg(arg, quick=False, dir="data/sst2", teacher="", preset="bert_tiny")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "3 epochs"
    c.batch_size = 32
    c.seq_len = 64

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="classification", classes=2)
    c.teacher = dict(
        source=arg.teacher or None, of=("logits",), temperature=2.0, alpha=0.5
    )
    # With a teacher its tokenizer is the student's, too.
    c.tokenizer = None
    if not arg.teacher:
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=4096, lowercase=True)
    c.optim = dict(
        name="adamw",
        lr=3e-4,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )

    columns = dict(columns=("text", "label"), header=False)
    train = dict(name="tsv", files=f"{arg.dir}/train.tsv", **columns)
    dev = dict(name="tsv", files=f"{arg.dir}/dev.tsv", **columns)
    if arg.quick:
        records = [dict(text=text, label=label) for text, label in SENTENCES]
        train = dev = dict(name="memory", items=records)
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
        if c.tokenizer is not None:
            c.tokenizer.vocab_size = 200
        c.batch_size = 4
        c.seq_len = 32
        c.log.every = 2
    return c
