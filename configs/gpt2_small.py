"""GPT-2 small, pre-trained from nothing on your own text.

What:     12 layers, 768 wide, context 1024 (Radford et al. 2019), documents packed into
          rows, half a million tokens to a step; the optimiser as Brown et al. 2020,
          appendix B.
Data:     text=FILE, one document to a paragraph, a share of it held out; without it the
          built-in English reference text, which is far too small for this model.
Command:  python -m lm.main --config=configs/gpt2_small.py:text=my.txt
Arguments, joined by commas: quick (a few steps of a tiny model), text=FILE,
          vocab=FOLDER (encoder.json and vocab.bpe, or vocab.json and merges.txt, of the
          published vocabulary; without it one is trained on the text),
          preset=gpt2_medium (and the other shapes).
          split=line takes each line of it as a document, instead of each paragraph.
Hardware: one accelerator of 80 GB; set grad_accum, mesh and batch_size to yours.
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, preset="gpt2_small", text="", split="blank_line", vocab=""
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10e9 tokens"
    c.batch_size = 512
    c.seq_len = 1024
    c.grad_accum = 16

    c.tokenizer = dict(name="hf", kind="bpe", vocab_size=50257)
    if arg.vocab:
        c.tokenizer.path = arg.vocab
    c.model = dict(
        name="transformer",
        preset=arg.preset,
        vocab_size=None,
        vocab_multiple=64,
        dropout=0.0,
        attention=dict(dropout=0.0),
    )
    c.objective = dict(name="causal_lm")
    c.optim = dict(
        name="adamw",
        lr=6e-4,
        schedule="cosine",
        end_lr=0.1,
        warmup="375e6 tokens",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.95),
    )
    c.compute = dict(dtype="bfloat16")

    source = (
        dict(name="text", files=arg.text, split=arg.split)
        if arg.text
        else dict(name="builtin")
    )
    heldout_share = 0.01 if arg.text else 0.05
    c.data = dict(
        sources=[dict(source, part="train", holdout=heldout_share)], pack=True
    )
    heldout = dict(sources=[dict(source, part="heldout", holdout=heldout_share)])
    c.evals = dict(
        heldout=dict(evaluator="mean", data=heldout, every="2%", limit=2048),
    )
    c.checkpoint = dict(every="2%", keep_last=2)
    c.log = dict(every=10)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 8
        c.seq_len = 64
        c.grad_accum = 1
        c.tokenizer = dict(name="hf", kind="bpe", vocab_size=1000)
        c.model.update(num_layers=2, d_model=64, num_heads=4, d_ff=256, max_len=64)
        c.optim.warmup = "2 steps"
        c.compute.dtype = "float32"
        c.evals.heldout.update(every="50%", limit=32)
        c.log.every = 2
    return c
