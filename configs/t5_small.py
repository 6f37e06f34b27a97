"""T5-small: an encoder-decoder pre-trained by span corruption.

What:     6 + 6 layers, 512 wide, 60.5M parameters with T5's vocabulary (Raffel et al.
          2020): 15 % of the tokens are left out in spans of 3 on average, and the
          decoder says them. 512 places of source are 568 tokens of text, with 114 of
          target.
Command:  python -m lm.main --config=configs/t5_small.py
          as it stands: the built-in corpus, a vocabulary trained on it and a batch that
          a laptop bears, so that the command works anywhere; it shows the model
          training, no more.
          python -m lm.main --config=configs/t5_small.py:paper,vocab=spiece.model
          the published recipe (sections 3.1.2 to 3.1.4): C4 through TFDS, 2^19 steps of
          128 rows, Adafactor, the learning rate constant over the first 10^4 steps and
          then falling with the square root of the step. Not run by us; the paper packs
          texts that see each other, here each is a segment of its own.
Arguments, joined by commas: quick (a few steps), paper, vocab=FILE (a SentencePiece
          model; T5's makes the model's published size), text=FILE (your own text).
          split=line takes each line of it as a document, instead of each paragraph.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, paper=False, vocab="", text="", split="blank_line"
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 200
    c.batch_size = 8
    c.seq_len = 128

    c.tokenizer = dict(name="spm", vocab_size=8000, extra_ids=100)
    if arg.vocab:
        c.tokenizer = dict(name="spm", path=arg.vocab, extra_ids=100)
    c.model = dict(
        name="transformer", preset="t5_small", vocab_size=None, vocab_multiple=128
    )
    c.objective = dict(name="span_corruption", rate=0.15, span=3.0)
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        schedule="rsqrt",
        warmup="10%",
        weight_decay=0.0,
        clip=1.0,
    )

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split=arg.split)
    if arg.paper:
        source = dict(name="tfds", dataset="c4/en", columns=("text",))
        c.steps = 2**19
        c.batch_size = 128
        c.seq_len = 512
        c.optim = dict(
            name="adafactor",
            lr=1e-2,
            schedule="rsqrt",
            warmup="10000 steps",
            weight_decay=0.0,
            clip=0.0,
        )
        c.model.dropout = 0.0
        c.model.attention = dict(dropout=0.0)
        c.compute = dict(dtype="bfloat16")
    holdout = 0.0001 if arg.paper else 0.05
    c.data = dict(sources=[dict(source, part="train", holdout=holdout)], pack=True)
    heldout = dict(sources=[dict(source, part="heldout", holdout=holdout)])
    c.evals = dict(
        heldout=dict(evaluator="mean", data=heldout, every="10%", limit=10_000),
        said=dict(evaluator="samples", data=heldout, every="100%", rows=3),
    )
    c.checkpoint = dict(every="5%" if arg.paper else "50%", keep_last=2)
    c.log = dict(every=100 if arg.paper else 1)

    if arg.quick:
        c.steps = 4
        c.batch_size = 2
        c.seq_len = 32
        c.evals.heldout.limit = 8
        c.evals.said.limit = 8
    return c
