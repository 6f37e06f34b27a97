"""Shakespeare, character by character: a small GPT from nothing.

What:     a causal Transformer (Radford et al. 2019) on the 1.1 million characters of
          tiny Shakespeare (Karpathy 2015), with the settings that nanoGPT publishes for
          a GPU (6 layers, 384 wide, context 256) and, as `cpu`, for a laptop (4 layers,
          128 wide, context 64). The last tenth of the text is held out.
Data:     input.txt of https://github.com/karpathy/char-rnn (data/tinyshakespeare);
          without a file, the built-in English reference text.
Command:  python -m lm.main --config=configs/shakespeare_char.py:cpu,text=input.txt
Arguments, joined by commas: quick (a few steps), cpu (the laptop's settings),
          text=FILE.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, cpu=False, text="")
    small = arg.cpu or arg.quick
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 1337
    c.steps = 2000 if small else 5000
    c.batch_size = 12 if small else 64
    c.seq_len = 64 if small else 256

    c.tokenizer = dict(name="word", kind="char", specials=("unk",))
    c.model = dict(
        name="transformer",
        preset="gpt2_small",
        vocab_size=None,
        vocab_multiple=1,
        num_layers=4 if small else 6,
        d_model=128 if small else 384,
        num_heads=4 if small else 6,
        d_ff=512 if small else 1536,
        max_len=c.seq_len,
        activation="gelu",
        bias="none",
        dropout=0.0 if small else 0.2,
        attention=dict(dropout=0.0 if small else 0.2),
    )
    c.objective = dict(name="causal_lm")
    if small:  # So small a model is bound by many small operations, not by memory.
        c.compute = dict(remat="none", unroll=0)
    c.optim = dict(
        name="adamw",
        lr=2e-3 if small else 1e-3,
        schedule="cosine",
        end_lr=0.1,
        warmup="5%" if small else "2%",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.99),
    )

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split="file", held="end")
    train = dict(source, part="train", holdout=0.1)
    heldout = dict(sources=[dict(source, part="heldout", holdout=0.1)])
    c.data = dict(sources=[train], pack=True)
    c.evals = dict(
        heldout=dict(evaluator="mean", data=heldout, every="50%", baseline="unigram"),
    )
    c.checkpoint = dict(every="25%", keep_last=2)
    c.log = dict(every=100)

    if arg.quick:
        c.steps = 20
        c.evals.heldout.limit = 64
        c.log.every = 5
    return c
