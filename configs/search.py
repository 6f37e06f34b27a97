"""Search: an encoder learns to find the documents that answer queries.

What:     query and answer are near each other, and the other answers of the batch and
          a hard negative far (InfoNCE; Karpukhin et al. 2020, arXiv:2004.04906). The
          evaluation searches the whole corpus by vectors, by words (BM25) and by both.
Data:     a folder in BEIR's form: corpus.jsonl, queries.jsonl, judgements for the
          evaluation, and train.jsonl of `text`, `positive` and perhaps `negative`, as
          `python -m lm.search --mine=train.jsonl` writes it.
Command:  python -m lm.main --config=configs/search.py:preset=hf,dir=data/nfcorpus \
              --config.init.source=hf:all-MiniLM-L6-v2
          The index of the corpus with its vectors, and a query:
          python -m lm.search --index=runs/index --workdir=runs/search-... \
              --corpus=data/nfcorpus/corpus.jsonl --query="a question"
Arguments, joined by commas: quick (a few steps on sentences of its own; with dir=, on
          that), dir=FOLDER, train=FILE, qrels=FILE, negatives (the training file has
          them), preset=bert_mini (the shape of a run's encoder; hf: that of
          init.source).
Results:  configs/README.md (Cranfield)
"""

import ml_collections

from lm.config import parse_arg

PAIRS = (
    ("who sleeps near the river", "a dog is asleep by the river"),
    ("where is the old house", "the old house is on the hill"),
    ("what does the bird find", "a small tree is found by a bird"),
    ("who runs under the bridge", "he runs under the bridge at noon"),
    ("how did they walk home", "in the rain they walked home"),
    ("when do the trains leave", "two trains leave at noon"),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        dir="",
        train="train.jsonl",
        qrels="qrels/test.tsv",
        negatives=False,
        preset="bert_tiny",
    )
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "1 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = 32 if arg.quick else 256

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    texts = ("text", "positive", "negative") if arg.negatives else ("text", "positive")
    c.objective = dict(name="contrastive", texts=texts, scale=20.0)
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
    if arg.quick:
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=200, lowercase=True)

    place = arg.dir or "data/beir"
    columns = {name: name for name in texts}
    train = dict(name="jsonl", files=f"{place}/{arg.train}", columns=columns)
    if arg.quick and not arg.dir:
        names = ("text", "positive", "negative")
        rows = [(*pair, other[1]) for pair, other in zip(PAIRS, PAIRS[1:] + PAIRS[:1])]
        train = dict(name="memory", items=[dict(zip(names, row)) for row in rows])
    c.data = dict(sources=[train])
    search = dict(
        evaluator="retrieval",
        corpus=f"{place}/corpus.jsonl",
        queries=f"{place}/queries.jsonl",
        qrels=f"{place}/{arg.qrels}",
    )
    if arg.quick and not arg.dir:
        search = dict(evaluator="mean")
    c.evals = dict(search=dict(search, data=dict(sources=[train]), every="100%"))
    c.checkpoint = dict(every="50%", keep_last=1)
    c.log = dict(every=2 if arg.quick else 10)
    return c
