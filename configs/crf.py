"""Taggers over features of words: a conditional random field, or an MEMM.

What:     the tags of a sentence from declared features of its words (the word, prefixes
          and suffixes, shape, neighbours), by a linear-chain conditional random field
          (Lafferty et al. 2001) or, with `memm`, a Markov model of maximum entropy
          (McCallum et al. 2000), fitted by L-BFGS with an L2 penalty.
Data:     task=pos: en_ewt-ud-{train,dev,test}.conllu (train may be .gz) of
          github.com/UniversalDependencies/UD_English-EWT; task=wnut17:
          wnut17train.conll, emerging.dev.conll and emerging.test.annotated of
          github.com/leondz/emerging_entities_17; task=resume: train, dev and
          test.char.bmes of github.com/jiesutd/LatticeLSTM; in a folder.
Command:  python -m lm.main --config=configs/crf.py:task=pos,dir=data/ewt
Arguments, joined by commas: quick (a few sentences of its own), task=pos (or wnut17, or
          resume), dir=FOLDER, memm, train (by random batches instead of whole passes,
          with features in 2^18 buckets).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

POS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART"),
    *("PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
ENTITIES = ("corporation", "creative-work", "group", "location", "person", "product")
RESUME = ("CONT", "EDU", "LOC", "NAME", "ORG", "PRO", "RACE", "TITLE")

WORDS = (
    *("bias", "word", "lower", "shape", "digit", "hyphen", "capital", "upper"),
    *(f"lprefix:{n}" for n in (1, 2, 3, 4)),
    *(f"lsuffix:{n}" for n in (1, 2, 3, 4)),
    *("-1:lower", "+1:lower", "-2:lower", "+2:lower", "-1:shape", "+1:shape"),
    *("-1:lower|lower", "lower|+1:lower"),
)
CHARACTERS = (
    *("bias", "word", "-1:word", "+1:word", "-2:word", "+2:word", "shape"),
    *("-1:word|word", "word|+1:word", "-2:word|-1:word", "+1:word|+2:word"),
    "-1:word|word|+1:word",
)

SENTENCES = (
    "the/DET dog/NOUN sees/VERB a/DET red/ADJ bird/NOUN ./PUNCT",
    "she/PRON can/AUX run/VERB to/ADP Leeds/PROPN ./PUNCT",
    "two/NUM old/ADJ cats/NOUN and/CCONJ a/DET fish/NOUN ./PUNCT",
    "oh/INTJ ,/PUNCT that/PRON is/AUX not/PART so/ADV good/ADJ !/PUNCT",
    "if/SCONJ Ana/PROPN sings/VERB ,/PUNCT we/PRON dance/VERB ./PUNCT",
)


def record(text: str) -> dict:
    pairs = [word.rpartition("/") for word in text.split()]
    return dict(words=[w for w, _, _ in pairs], tags=[tag for _, _, tag in pairs])


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, task="pos", dir="data/ewt", memm=False, train=False
    )
    c = ml_collections.ConfigDict()
    c.job = "train" if arg.train else "fit"
    c.seed = 0
    # Passes, each of many steps of L-BFGS, or of OWL-QN where c1 is not 0.
    c.steps = "10 epochs" if arg.train else 2
    c.batch_size = 8 if arg.train else 64
    c.seq_len = 512  # characters

    labels, scheme = dict(
        pos=(POS, "word"),
        wnut17=(("O", *(f"{p}-{e}" for e in ENTITIES for p in "BI")), "bio"),
        resume=(("O", *(f"{p}-{e}" for e in RESUME for p in "BMES")), "bmes"),
    )[arg.task]
    c.tokenizer = dict(name="word", kind="char", specials=("pad", "unk"))
    c.model = dict(
        name="crf",
        templates=CHARACTERS if arg.task == "resume" else WORDS,
        normalise="word" if arg.memm else "sentence",
        min_count=2 if arg.task == "pos" else 1,
        c1=0.05 if arg.task == "resume" else 0.0,
        c2=dict(pos=0.1, wnut17=1.0, resume=0.05)[arg.task],
        iterations=100,
    )
    c.objective = dict(name="chain_tagging", labels=labels, scheme=scheme)
    if arg.train:
        c.model.buckets = 2**18
        c.optim = dict(lr=0.02, weight_decay=0.0, decay_mask=((".*", 1.0),))

    files = dict(
        pos=dict(
            train="en_ewt-ud-train.conllu*",
            dev="en_ewt-ud-dev.conllu",
            test="en_ewt-ud-test.conllu",
        ),
        wnut17=dict(
            train="wnut17train.conll",
            dev="emerging.dev.conll",
            test="emerging.test.annotated",
        ),
        resume={part: f"{part}.char.bmes" for part in ("train", "dev", "test")},
    )[arg.task]

    def sources(part: str) -> dict:
        file = dict(name="conll", files=f"{arg.dir}/{files[part]}")
        if arg.task == "pos":
            file.update(format="conllu", columns=dict(words=2, tags=4))
        if arg.quick:
            items = tuple(record(text) for text in SENTENCES)
            file = dict(name="memory", items=items, lists=True)
        return dict(sources=[file], pack=part == "train")

    c.data = sources("train")
    c.evals = {
        part: dict(evaluator="tags", data=sources(part), every="100%")
        for part in ("dev", "test")
    }
    c.checkpoint = dict(every="20%" if arg.train else 1, keep_last=1)
    c.log = dict(every=100 if arg.train else 1)

    if arg.quick:
        if arg.train:
            c.steps = "20 steps"
            c.model.buckets = 1024
        c.seq_len = 64
        c.batch_size = 8
        c.model.update(min_count=1, iterations=5)
        del c.evals["test"]
    return c
