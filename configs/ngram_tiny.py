"""An n-gram model: counts of the last words, the baseline that every other must pass.

What:     trigrams of words or characters with add-k smoothing (Chen and Goodman 1998,
          section 2.1), counted in one pass. `k` is no parameter: a run is evaluated
          with another one by
          python -m lm.evaluate --workdir=runs/ngram_tiny --config.model.k=0.1
Data:     the built-in English reference text, or your own:
          --config=configs/ngram_tiny.py:text=my.txt
Command:  python -m lm.main --config=configs/ngram_tiny.py
Arguments, joined by commas: quick (bigrams, a part of the evaluation), order=3,
          kind=word (or char, or byte), text=FILE (your own text; a share of it is held
          out), wikitext2=FOLDER (train.txt.gz, valid.txt and test.txt of WikiText-2, as
          one stream, every token predicted but the first of each file).
          split=line takes each line of it as a document, instead of each paragraph.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        order=3,
        kind="word",
        text="",
        split="blank_line",
        wikitext2="",
    )
    c = ml_collections.ConfigDict()
    c.job = "fit"
    c.seed = 0
    c.steps = 1  # passes
    c.batch_size = 8
    c.seq_len = 256

    c.tokenizer = dict(name="word", kind=arg.kind)
    c.model = dict(name="ngram", order=2 if arg.quick else arg.order, k=0.01)
    # Windows of a long text share tokens, so that each target has its whole context.
    c.objective = dict(name="causal_lm", stride=c.seq_len - c.model.order + 1)

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split=arg.split)
    train = dict(sources=[dict(source, part="train")])
    heldout = dict(sources=[dict(source, part="heldout")])
    c.evals = dict(heldout=dict(evaluator="mean", data=heldout, every=1))
    if arg.wikitext2:
        c.model.k = 0.001  # the best on valid.txt of 0.0003 to 1, for trigrams of words
        c.seq_len = 1024
        c.objective.update(stride=c.seq_len - c.model.order + 1, eos=False)
        c.tokenizer = dict(
            name="word", kind=arg.kind, line_ends=True, specials=("unk", "eos")
        )
        if arg.kind != "word":
            c.tokenizer = dict(name="word", kind=arg.kind, specials=("unk",))

        def text(file: str) -> dict:
            files = f"{arg.wikitext2}/{file}"
            return dict(sources=[dict(name="text", files=files, split="file")])

        train = text("train.txt.gz")
        c.evals = {
            # Fewer logits at a time, one for each of 33,278 words, are faster.
            name: dict(
                evaluator="mean", data=text(f"{name}.txt"), every=1, batch_size=1
            )
            for name in ("valid", "test")
        }
    c.data = train
    c.checkpoint = dict(every=1, keep_last=1)
    c.log = dict(every=1)

    if arg.quick:
        for evaluation in c.evals.values():
            evaluation.limit = 64
    return c
