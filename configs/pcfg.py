"""A grammar of English, counted from a treebank and refined by inside-outside.

What:     a probabilistic context-free grammar with binary rules (horizontal order 2,
          chains of single children joined), counted from the trees of the training
          part (Klein and Manning 2003); with passes=N above 1 inside-outside on its
          sentences follows (Lari and Young 1990). Scores: labelled brackets as by
          EVALB, and bits per byte as a language model.
Data:     train, dev and test.ptb.gz in a folder, trees in the brackets of the Penn
          Treebank (made from github.com/amir-zeldes/gum, folder const).
Command:  python -m lm.main --config=configs/pcfg.py:dir=data/gum
Arguments, joined by commas: quick (a few trees of its own), dir=FOLDER, tags (the gold
          parts of speech take the place of the words), vertical=1, passes=1,
          longest=40 (words of a sentence that is parsed).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

TREES = (
    "(S (NP (DT the) (NN man)) (VP (VBD saw) (NP (NNP Mary))))",
    "(S (NP (NNP Mary)) (VP (VBD saw) (NP (DT a) (JJ red) (NN dog)) (PP (IN with) "
    "(NP (DT the) (NN telescope)))))",
    "(S (NP (DT the) (NN dog)) (VP (VBD slept)))",
    "(S (NP (NP (DT a) (NN man)) (PP (IN in) (NP (DT the) (NN park)))) "
    "(VP (VBD slept)))",
    "(S (NP (PRP she)) (VP (VBD saw) (NP (NP (DT the) (NN park)) (PP (IN with) "
    "(NP (DT a) (NN dog))))))",
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, dir="data/gum", tags=False, vertical=1, passes=1, longest=40
    )
    c = ml_collections.ConfigDict()
    c.job = "fit"
    c.seed = 0
    c.steps = arg.passes
    c.batch_size = 8
    c.seq_len = 400  # all sentences are counted

    c.tokenizer = dict(name="word", kind="word", specials=("pad", "unk"))
    c.model = dict(name="pcfg", longest=arg.longest)
    c.objective = dict(name="parsing")

    def sources(part: str) -> dict:
        source = dict(
            name="trees",
            files=f"{arg.dir}/{part}.ptb.gz",
            leaves="tags" if arg.tags else "words",
            vertical=arg.vertical,
        )
        if arg.quick:
            source.update(files=(), items=TREES)
        return dict(sources=[source])

    c.data = sources("train")
    c.evals = {
        part: dict(
            evaluator="brackets",
            data=sources(part),
            every="100%",
            longest=arg.longest,
        )
        for part in ("dev", "test")
    }
    c.checkpoint = dict(every=1, keep_last=1)
    c.log = dict(every=1)

    if arg.quick:
        c.steps = 2
        c.seq_len = 12
        del c.evals["test"]
    return c
