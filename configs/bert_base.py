"""BERT-base: masked language modelling and next-sentence prediction.

What:     12 layers, 768 wide, 110.1M parameters with both heads (Devlin et al. 2019).
Command:  python -m lm.main --config=configs/bert_base.py
          as it stands: the built-in corpus and a batch that a laptop bears, so that
          the command works anywhere; it shows the model training, no more.
          python -m lm.main --config=configs/bert_base.py:paper
          the published recipe (section A.2): English Wikipedia through TFDS, batch 256,
          rows of 512 tokens, a million steps, Adam at 1e-4 with 10,000 steps of warm-up
          and linear decay. The paper adds the BooksCorpus, which is no longer to be
          had, and trains the first 90 % of the steps on rows of 128 tokens
          (--config.seq_len=128). Not run by us.
Arguments, joined by commas: quick (a few steps), paper, text=FILE (your own text).
          split=line takes each line of it as a document, instead of each paragraph.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, paper=False, text="", split="blank_line")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 200
    c.batch_size = 8
    c.seq_len = 128

    c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=8192, lowercase=True)
    c.model = dict(name="transformer", preset="bert_base", vocab_size=None)
    c.objective = dict(name="mlm", next="nsp")
    c.optim = dict(
        name="adamw",
        lr=1e-4,
        schedule="linear",
        warmup="10000 steps" if arg.paper else "10%",
        weight_decay=0.01,
        clip=1.0,
    )

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split=arg.split)
    if arg.paper:
        source = dict(name="tfds", dataset="wikipedia/20230601.en", columns=("text",))
        c.steps = 1_000_000
        c.batch_size = 256
        c.seq_len = 512
        c.tokenizer.vocab_size = 30522
        c.model.vocab_size = 30522
        c.compute = dict(dtype="bfloat16")
    holdout = 0.001 if arg.paper else 0.05
    c.data = dict(sources=[dict(source, part="train", holdout=holdout)])
    heldout = dict(sources=[dict(source, part="heldout", holdout=holdout)])
    c.evals = dict(
        heldout=dict(
            evaluator="mean",
            data=heldout,
            every="10%",
            limit=10_000,
            baseline="unigram",
        ),
        filled=dict(evaluator="samples", data=heldout, every="100%", rows=3),
    )
    c.checkpoint = dict(every="5%" if arg.paper else "50%", keep_last=2)
    c.log = dict(every=100 if arg.paper else 1)

    if arg.quick:
        c.steps = 4
        c.batch_size = 2
        c.seq_len = 32
        c.evals.heldout.limit = 8
        c.evals.filled.limit = 8
    return c
