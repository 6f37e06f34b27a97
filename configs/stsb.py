"""STS-B by the vectors of its sentences, each encoded by itself (Cer et al. 2017).

What:     an encoder whose vectors, the mean of the states of a sentence's tokens, are
          nearer where people found two sentences more similar: CoSENT (Su 2022), which
          learns from the order of the scores. configs/glue.py:task=stsb reads both
          sentences at once; such a model is better and gives no vectors.
Data:     CSV files in a folder, without a header: sentence, sentence, score 0 to 5.
Command:  python -m lm.main --config=configs/stsb.py:preset=hf,dir=data/stsb \
              --config.init.source=hf:all-MiniLM-L6-v2
          What the encoder reaches without any training:
          python -m lm.convert --from=hf:all-MiniLM-L6-v2 --workdir=runs/minilm
          python -m lm.evaluate --workdir=runs/minilm --only=test \
              --config=configs/stsb.py:preset=hf,dir=data/stsb \
              --config.init.source=hf:all-MiniLM-L6-v2
Arguments, joined by commas: quick (a few steps on sentences of its own), dir=FOLDER,
          train=FILE, dev=FILE, test=FILE, kind=cosent|cosine, preset=bert_mini (the
          shape of a run's encoder; hf: that of init.source), scratch (a new encoder
          with a tokenizer of its own).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

SENTENCES = (
    ("the dog sleeps near the river", "a dog is asleep by the river", 4.8),
    ("the old house is on the hill", "she likes red fish", 0.0),
    ("a bird finds a small tree", "a small tree is found by a bird", 4.4),
    ("he runs under the bridge", "the cat eats and sleeps", 0.6),
    ("they walked home in the rain", "they walked home", 3.2),
    ("the soup was cold and late", "the soup was hot", 2.0),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        scratch=False,
        dir="data/stsb",
        train="stsb-en-train.csv",
        dev="stsb-en-dev.csv",
        test="stsb-en-test.csv",
        kind=("cosent", "cosine"),
        preset="bert_tiny",
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "4 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = 32 if arg.quick else 128

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(
        name="contrastive",
        kind=arg.kind,
        texts=("first", "second"),
        label="score",
        between=(0.0, 5.0),
    )
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
    if arg.scratch or arg.quick:
        size = 200 if arg.quick else 8192
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=size, lowercase=True)

    def source(name):
        if arg.quick:
            records = [dict(zip(columns, each)) for each in SENTENCES]
            return dict(name="memory", items=records)
        files = f"{arg.dir}/{name}"
        return dict(name="csv", files=files, columns=columns, header=False)

    columns = ("first", "second", "score")
    c.data = dict(sources=[source(arg.train)])
    c.evals = {
        name: dict(
            evaluator="similarity",
            data=dict(sources=[source(file)]),
            every=every,
            write=True,
        )
        for name, file, every in (
            ("dev", arg.dev, "1 epochs"),
            ("test", arg.test, "100%"),
        )
    }
    c.checkpoint = dict(
        every="1 epochs", keep_last=1, best="dev/spearman", best_mode="max"
    )
    c.log = dict(every=2 if arg.quick else 20)
    return c
