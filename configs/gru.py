"""A small recurrent language model: three layers of gated recurrent units.

What:     3 layers, 256 wide (Cho et al. 2014), dropout between the layers (Zaremba et
          al. 2014), the output tied to the embedding; a byte-level BPE vocabulary
          trained on the text. model.cell has the others: lstm, elman, elman_relu.
Data:     the built-in English reference text, or your own: text=FILE.
Command:  python -m lm.main --config=configs/gru.py
Arguments, joined by commas: quick (a few steps), text=FILE.
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, text="")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 1000
    c.batch_size = 16
    c.seq_len = 128

    c.tokenizer = dict(name="hf", kind="bpe", vocab_size=2000)
    c.model = dict(name="rnn", cell="gru", num_layers=3, d_model=256, dropout=0.1)
    c.objective = dict(name="causal_lm")
    c.optim = dict(
        name="adamw",
        lr=3e-3,
        schedule="cosine",
        end_lr=0.1,
        warmup="5%",
        weight_decay=0.01,
        clip=1.0,
    )

    source = dict(name="text", files=arg.text) if arg.text else dict(name="builtin")
    c.data = dict(sources=[dict(source, part="train")], pack=True)
    heldout = dict(sources=[dict(source, part="heldout")])
    c.evals = dict(
        heldout=dict(evaluator="mean", data=heldout, every="20%", baseline="unigram"),
    )
    c.checkpoint = dict(every="20%", keep_last=2)
    c.log = dict(every=20)

    if arg.quick:
        c.steps = 10
        c.batch_size = 4
        c.seq_len = 64
        c.tokenizer.vocab_size = 1000
        c.model.update(num_layers=2, d_model=64)
        c.evals.heldout.update(every="50%", limit=16)
        c.log.every = 2
    return c
