"""Search in the Cranfield collection (Cleverdon 1967) by a fine-tuned encoder.

What:     MiniLM learns from the queries of four fifths of the collection; the others
          are searched for in all 1,400 abstracts, by vectors, by BM25 and by both.
Data:     python -m experiments.cranfield.convert FOLDER data/cranfield
Command:  python -m lm.main --config=configs/cranfield.py:preset=hf,dir=data/cranfield \
              --config.init.source=hf:all-MiniLM-L6-v2
          Without training, over all queries:
          python -m lm.search --index=runs/minilm-index --workdir=hf:all-MiniLM-L6-v2 \
              --corpus=data/cranfield/corpus.jsonl \
              --input=data/cranfield/queries.jsonl --qrels=data/cranfield/qrels.tsv
Arguments, joined by commas: quick (a few steps; without dir=, on sentences of its own),
          dir=FOLDER, preset=bert_mini (the shape of a run's encoder; hf: that of
          init.source).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

PAIRS = (
    ("what lifts a wing", "the lift of a wing in a slipstream ."),
    ("heat transfer to a flat plate", "a plate in a heated boundary layer ."),
    ("buckling of thin cylinders", "thin shells buckle under axial loads ."),
    ("flutter of panels", "panels flutter at supersonic speeds ."),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="", preset="bert_tiny")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "2 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = 32 if arg.quick else 128

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="contrastive", texts=("text", "positive"), scale=20.0)
    c.optim = dict(
        name="adamw",
        lr=2e-5,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )
    c.init = dict(source=None)
    c.tokenizer = None
    if arg.quick:
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=200, lowercase=True)

    place = arg.dir or "data/cranfield"
    columns = dict(text="text", positive="positive")
    train = dict(name="jsonl", files=f"{place}/train.jsonl", columns=columns)
    search = dict(
        evaluator="retrieval",
        corpus=f"{place}/corpus.jsonl",
        queries=f"{place}/queries.jsonl",
        qrels=f"{place}/test.tsv",
    )
    if arg.quick and not arg.dir:
        items = [dict(text=text, positive=positive) for text, positive in PAIRS]
        train = dict(name="memory", items=items)
        search = dict(evaluator="mean")
    c.data = dict(sources=[train])
    c.evals = dict(test=dict(search, data=dict(sources=[train]), every="50%"))
    c.checkpoint = dict(every="50%", keep_last=1)
    c.log = dict(every=2 if arg.quick else 10)
    return c
