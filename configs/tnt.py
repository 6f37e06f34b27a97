"""Parts of speech by a hidden Markov model, counted from tagged sentences.

What:     TnT (Brants 2000): trigrams of tags by deleted interpolation, and the endings
          of rare words for words that were not seen; with order=2 bigrams, and with
          suffix=0 nothing about new words, the plainest HMM.
Data:     en_ewt-ud-train.conllu (or .conllu.gz), en_ewt-ud-dev.conllu and
          en_ewt-ud-test.conllu in a folder
          (github.com/UniversalDependencies/UD_English-EWT).
Command:  python -m lm.main --config=configs/tnt.py:dir=data/ewt
Arguments, joined by commas: quick (a few sentences of its own), dir=FOLDER, order=3,
          suffix=10.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

LABELS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART"),
    *("PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
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
    arg = parse_arg(arg, quick=False, dir="data/ewt", order=3, suffix=10)
    c = ml_collections.ConfigDict()
    c.job = "fit"
    c.seed = 0
    c.steps = 1
    c.batch_size = 64
    c.seq_len = 512  # characters

    c.tokenizer = dict(name="word", kind="char", specials=("pad", "unk"))
    # A word is known with the tags that it was seen with, and a little with all others.
    c.model = dict(name="tnt", order=arg.order, suffix=arg.suffix, smoothing=0.001)
    c.objective = dict(name="chain_tagging", labels=LABELS)

    def sources(part: str) -> dict:
        # A glob, so that train may be packed.
        file = dict(name="conll", files=f"{arg.dir}/en_ewt-ud-{part}.conllu*")
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
    c.checkpoint = dict(every=1, keep_last=1)
    c.log = dict(every=1)

    if arg.quick:
        c.seq_len = 64
        c.batch_size = 8
        del c.evals["test"]
    return c
