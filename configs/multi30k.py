"""German from English: a small Transformer on the captions of Multi30k.

What:     encoder and decoder of 4 layers, 128 wide (the Transformer of Vaswani et al.
          2017, pre-norm; a size that 29,000 sentences bear, Wu et al. 2021, with their
          dropout), one vocabulary and one embedding for both languages, several pairs
          packed to a row.
Data:     Multi30k task 1, raw text (Elliott et al. 2016), in a folder:
          train.en.gz train.de.gz val.en val.de test_2016_flickr.en test_2016_flickr.de
          from https://github.com/multi30k/dataset (data/task1/raw).
Command:  python -m lm.main --config=configs/multi30k.py:dir=data/multi30k
Arguments, joined by commas: quick (a few steps on a dozen pairs of its own),
          dir=FOLDER.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

PAIRS = (
    ("a man rides a red bike", "ein mann fährt ein rotes fahrrad"),
    ("a woman rides a horse", "eine frau reitet ein pferd"),
    ("two dogs play in the snow", "zwei hunde spielen im schnee"),
    ("a boy jumps into the water", "ein junge springt ins wasser"),
    ("a girl eats an apple", "ein mädchen isst einen apfel"),
    ("the dog sleeps on the grass", "der hund schläft im gras"),
    ("three men sit on a bench", "drei männer sitzen auf einer bank"),
    ("a child plays with a ball", "ein kind spielt mit einem ball"),
    ("a woman reads a book", "eine frau liest ein buch"),
    ("two girls sing on a stage", "zwei mädchen singen auf einer bühne"),
    ("a man sleeps on a bench", "ein mann schläft auf einer bank"),
    ("a boy plays in the water", "ein junge spielt im wasser"),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/multi30k")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "23 epochs"
    c.batch_size = 16
    c.seq_len = 128

    c.tokenizer = dict(name="spm", vocab_size=6000, character_coverage=1.0)
    c.model = dict(
        name="transformer",
        kind="encoder_decoder",
        vocab_size=None,
        num_layers=4,
        encoder_layers=4,
        d_model=128,
        num_heads=4,
        d_ff=256,
        position="sinusoidal",
        token_types=0,
        norm="layer",
        norm_position="pre",
        norm_epsilon=1e-6,
        activation="relu",
        embedding="scaled",
        output="tied",
        dropout=0.3,
        attention=dict(dropout=0.1),
        init_std=None,
    )
    c.objective = dict(name="seq2seq", label_smoothing=0.1)
    c.optim = dict(
        name="adam",
        lr=3e-3,
        schedule="cosine",
        warmup="1000 steps",
        weight_decay=0.0,
        clip=1.0,
        options=dict(b2=0.98, eps=1e-9),
    )

    def parallel(english: str, german: str) -> dict:
        files = dict(source=f"{arg.dir}/{english}", target=f"{arg.dir}/{german}")
        return dict(name="parallel", files=files)

    train = parallel("train.en.gz", "train.de.gz")
    val = parallel("val.en", "val.de")
    test = parallel("test_2016_flickr.en", "test_2016_flickr.de")
    if arg.quick:
        records = [dict(source=english, target=german) for english, german in PAIRS]
        train = val = test = dict(name="memory", items=records)
        c.tokenizer = dict(name="word", kind="word")
    c.data = dict(sources=[train], pack=True)
    c.evals = dict(
        val=dict(evaluator="mean", data=dict(sources=[val]), every="2 epochs"),
        test=dict(
            evaluator="generation",
            data=dict(sources=[test], pack=False),
            metrics=("bleu", "chrf"),
            every="100%",
            beams=5,
            length_penalty=1.0,
            max_tokens=96,
        ),
    )
    c.checkpoint = dict(every="2 epochs", keep_last=1, best="val/loss", best_mode="min")
    c.log = dict(every=20)

    if arg.quick:
        c.steps = "20 steps"
        c.batch_size = 4
        c.seq_len = 16
        c.model.num_layers = c.model.encoder_layers = 2
        c.model.d_model = 32
        c.model.d_ff = 64
        c.optim.warmup = "10%"
        c.evals.val.every = "50%"
        c.evals.test.max_tokens = 12
        c.evals.test.beams = 2
        c.checkpoint.every = "50%"
        c.log.every = 5
    return c
