"""A tiny Llama: the blocks of today's decoders at a laptop's size.

What:     4 layers, 256 wide, rotary positions, RMS norms, SwiGLU and four key heads for
          eight query heads (Touvron et al. 2023; Llama 3, 2024), no biases, no dropout;
          a byte-level BPE vocabulary trained on the text.
Data:     the built-in English reference text, or your own: text=FILE.
Command:  python -m lm.main --config=configs/llama_tiny.py
Arguments, joined by commas: quick (a few steps), text=FILE.
          split=line takes each line of it as a document, instead of each paragraph.
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, text="", split="blank_line")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 1000
    c.batch_size = 16
    c.seq_len = 128

    c.tokenizer = dict(name="hf", kind="bpe", vocab_size=2000)
    c.model = dict(name="transformer", preset="llama_tiny", vocab_size=None)
    c.objective = dict(name="causal_lm")
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        schedule="cosine",
        end_lr=0.1,
        warmup="5%",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.95),
    )

    source = (
        dict(name="text", files=arg.text, split=arg.split)
        if arg.text
        else dict(name="builtin")
    )
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
        c.model.update(num_layers=2, d_model=64, d_ff=172)
        c.evals.heldout.update(every="50%", limit=16)
        c.log.every = 2
    return c
