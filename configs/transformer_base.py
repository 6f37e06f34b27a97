"""The Transformer of 2017: translation on your own parallel files.

What:     6 + 6 layers, 512 wide, post-norm, 63M parameters with a vocabulary of 37,000
          (Vaswani et al. 2017, "base"; table 3 says 65M): label smoothing 0.1, Adam with
          4,000 steps of warm-up, then the learning rate falls with the square root of
          the step; about 25,000 tokens on each side of a batch.
Data:     two files of sentences, line by line, and two for validation; a shared
          vocabulary is trained on both languages.
Command:  python -m lm.main --config=configs/transformer_base.py:source=train.en,target=train.de,dev_source=dev.en,dev_target=dev.de
          The paper's runs take 100,000 steps on eight GPUs. Not run by us.
Arguments, joined by commas: quick (a few steps on a dozen pairs of its own),
          source=FILE, target=FILE, dev_source=FILE, dev_target=FILE, big (the paper's
          larger model).
Results:  configs/README.md
"""  # noqa: E501 (a command is one line)

import ml_collections

from lm.config import parse_arg

NUMBERS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
ZAHLEN = ("ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
PAIRS = tuple(
    dict(source=f"{number} small red stones", target=f"{zahl} kleine rote steine")
    for number, zahl in zip(NUMBERS, (*ZAHLEN, "zehn"))
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        big=False,
        source="data/train.en",
        target="data/train.de",
        dev_source="data/dev.en",
        dev_target="data/dev.de",
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 300_000 if arg.big else 100_000
    c.batch_size = 96
    c.seq_len = 256

    preset = "transformer_big" if arg.big else "transformer_base"
    c.tokenizer = dict(name="spm", kind="bpe", vocab_size=37000, character_coverage=1.0)
    c.model = dict(name="transformer", preset=preset, vocab_size=None)
    c.objective = dict(name="seq2seq", label_smoothing=0.1, too_long="skip")
    width = 1024 if arg.big else 512
    c.optim = dict(
        name="adam",
        lr=(width * 4000) ** -0.5,
        schedule="rsqrt",
        warmup="4000 steps",
        weight_decay=0.0,
        clip=0.0,
        options=dict(b2=0.98, eps=1e-9),
    )

    files = dict(source=arg.source, target=arg.target)
    dev_files = dict(source=arg.dev_source, target=arg.dev_target)
    train = dict(name="parallel", files=files)
    dev = dict(name="parallel", files=dev_files)
    if arg.quick:
        train = dev = dict(name="memory", items=PAIRS)
        c.tokenizer = dict(name="word", kind="word")
    c.data = dict(sources=[train], pack=True)
    c.evals = dict(
        dev=dict(evaluator="mean", data=dict(sources=[dev]), every="1000 steps"),
    )
    c.checkpoint = dict(
        every="1000 steps", keep_last=5, best="dev/loss", best_mode="min"
    )
    c.log = dict(every=100)

    if arg.quick:
        c.steps = 10
        c.batch_size = 4
        c.seq_len = 16
        c.model.num_layers = 2
        c.model.d_model = 64
        c.model.num_heads = 2
        c.model.d_ff = 128
        c.optim.warmup = "10%"
        c.evals.dev.every = "50%"
        c.checkpoint.every = "50%"
        c.log.every = 2
    return c
