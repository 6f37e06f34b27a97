"""A rung of the ladder: one kind of language model on the characters of one text.

All predict every character of the held-out tenth but the first. Models that are trained
by gradients have about 440,000 parameters and read `steps` times 16 x 128 characters
with one optimiser. They see of the text before a character what each kind can:

    ngram3, ngram5       the 2 or 4 characters before
    hmm                  all of it, in 64 hidden states
    elman, lstm, gru     all of it: the state is carried from row to row
    cnn                  32 characters (8 blocks of width 5)
    transformer          64 to 127 characters, in windows that overlap by half

Command:  python experiments/ladder/run.py --dir=runs/ladder --text=input.txt
Arguments, joined by commas: kind=lstm, steps=500, text=FILE (without it the built-in
          English reference text), quick (a few steps of small models).
"""

import ml_collections

from lm.config import parse_arg

RECURRENT = {"elman": 336, "lstm": 168, "gru": 192}  # units of each of two layers
ORDERS = {"ngram3": 3, "ngram5": 5}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, kind="lstm", steps=500, text="", quick=False)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.tokenizer = dict(name="word", kind="char", specials=("unk",))
    c.objective = dict(name="causal_lm", bos=False, eos=False)

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split="file", held="end")
    c.data = dict(sources=[dict(source, part="train", holdout=0.1)])
    heldout = dict(sources=[dict(source, part="heldout", holdout=0.1)])
    c.evals = dict(heldout=dict(evaluator="mean", data=heldout, every="20%"))
    c.checkpoint = dict(every="20%", keep_last=1)
    c.log = dict(every=50, tensorboard=False)

    if arg.kind in ORDERS:
        counted(c, ORDERS[arg.kind])
    elif arg.kind == "hmm":
        expected(c)
    else:
        trained(c, arg.kind, arg.steps)
    if arg.quick:
        quick(c, arg.kind)
    return c


def counted(c: ml_collections.ConfigDict, order: int) -> None:
    """Interpolated modified Kneser-Ney, counted in a pass."""
    c.job = "fit"
    c.steps = 1
    c.batch_size = 8
    c.seq_len = 1024
    c.model = dict(
        name="ngram", order=order, smoothing="kneser_ney", discount_fallback=True
    )
    c.objective.stride = c.seq_len - order + 1  # each target has its whole context
    c.evals.heldout.every = "100%"
    c.checkpoint.every = "100%"


def expected(c: ml_collections.ConfigDict) -> None:
    """Baum-Welch; the text in pieces, each of which begins anew."""
    c.job = "fit"
    c.steps = 10
    c.batch_size = 128
    c.seq_len = 256
    c.model = dict(name="hmm", states=64)
    c.evals.heldout.objective = dict(stride=128)


def trained(c: ml_collections.ConfigDict, kind: str, steps: int) -> None:
    c.job = "train"
    c.steps = steps
    c.batch_size = 16
    c.seq_len = 128
    c.optim = dict(
        name="adamw",
        lr=2e-3,
        schedule="cosine",
        end_lr=0.1,
        warmup="5%",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.99),
    )
    c.compute = dict(remat="none")
    if kind in RECURRENT:
        c.model = dict(
            name="rnn", cell=kind, num_layers=2, d_model=RECURRENT[kind], dropout=0.0
        )
        c.objective.borders = "ignore"
        c.data.order = c.evals.heldout.data.order = "stream"
        return
    c.evals.heldout.objective = dict(stride=64)
    if kind == "cnn":
        c.model = dict(name="cnn", num_layers=8, d_model=74, width=5, dropout=0.0)
    elif kind == "transformer":
        c.model = dict(
            name="transformer",
            preset="gpt2_small",
            vocab_size=None,
            num_layers=4,
            d_model=96,
            num_heads=4,
            d_ff=384,
            max_len=c.seq_len,
            bias="none",
            dropout=0.0,
            attention=dict(dropout=0.0),
        )
    else:
        raise ValueError(f"kind={kind!r} is none of those at the top of this file")


def quick(c: ml_collections.ConfigDict, kind: str) -> None:
    c.evals.heldout.limit = 16
    if kind in ORDERS:
        return
    c.steps = 6 if c.job == "train" else 2
    c.evals.heldout.every = c.checkpoint.every = "50%"
    if kind == "hmm":
        c.model.states = 4
        return
    c.batch_size = 8
    c.model.update(num_layers=2, d_model=16)
    if kind == "transformer":
        c.model.d_ff = 32
