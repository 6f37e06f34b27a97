"""Vectors of texts, learned without labels or from pairs (SimCSE, Gao et al. 2021).

What:     each text is to find its positive among those of the batch (InfoNCE). Without
          pairs the positive is the text itself, read with another draw of dropout; with
          pairs the positive is another text, and a third column may have a text that is
          similar and no positive (a hard negative).
Data:     lines of text; with pairs, JSON lines with `text`, `positive` and perhaps
          `negative`. sts= names pairs with a score for the evaluation, as STS-B has.
Command:  python -m lm.main --config=configs/embed.py:preset=hf,dir=data,train=a.txt \
              --config.init.source=hf:MiniLM-L6-H384-uncased
          Its vectors, as an array, for sentence-transformers, and in Python:
          python -m lm.embed --workdir=runs/embed-... --input=texts.txt \
              --output=vectors.npy
          python -m lm.convert --to=hf:exported --workdir=runs/embed-...
          lm.open("runs/embed-...").embed(["a text"])
Arguments, joined by commas: quick (a few steps on sentences of its own), dir=FOLDER,
          train=FILE, pairs, negatives (the file has them), sts=FILE, preset=bert_mini
          (the shape of a run's encoder; hf: that of init.source), scratch (a new
          encoder with a tokenizer of its own).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

SENTENCES = (
    ("the dog sleeps near the river", "a dog is asleep by the river", 4.8),
    ("the old house is on the hill", "she likes red fish", 0.0),
    ("a bird finds a small tree", "a small tree is found by a bird", 4.4),
    ("he runs under the bridge", "the cat eats and sleeps", 0.6),
    ("they walked home in the rain", "in the rain they walked home", 4.9),
    ("the soup was cold and late", "two trains leave at noon", 0.2),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        scratch=False,
        dir="data",
        train="texts.txt",
        pairs=False,
        negatives=False,
        sts="",
        preset="bert_tiny",
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "1 epochs"
    c.batch_size = 4 if arg.quick else 64
    c.seq_len = 32

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    texts = ("text", "positive") if arg.pairs else ("text", "text")
    if arg.negatives:
        texts += ("negative",)
    c.objective = dict(name="contrastive", texts=texts, scale=20.0)
    c.optim = dict(
        name="adamw",
        lr=3e-5,
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

    columns = {name: name for name in texts}
    if arg.quick:
        names = ("text", "positive", "score")
        train = dict(name="memory", items=[dict(zip(names, s)) for s in SENTENCES])
    elif arg.pairs:
        files = f"{arg.dir}/{arg.train}"
        train = dict(name="jsonl", files=files, columns=columns)
    else:
        train = dict(name="text", files=f"{arg.dir}/{arg.train}", split="line")
    c.data = dict(sources=[train])
    c.evals = {}
    if arg.quick or arg.sts:
        columns = ("text", "positive", "score")
        files = f"{arg.dir}/{arg.sts}"
        scored = dict(name="csv", files=files, columns=columns, header=False)
        c.evals.sts = dict(
            evaluator="similarity",
            objective=dict(texts=("text", "positive"), label="score"),
            data=dict(sources=[train if arg.quick else scored]),
            every="50%",
        )
    c.checkpoint = dict(every="50%", keep_last=1)
    c.log = dict(every=2 if arg.quick else 20)
    return c
