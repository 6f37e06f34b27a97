"""Parts of speech (UD English EWT): BiLSTM-CRF from scratch, or BERT fine-tuned.

What:     the 17 universal parts of speech of gold words. From scratch, a bidirectional
          LSTM over words and their bytes with a conditional random field on top (Ma and
          Hovy 2016); with `bert`, the encoder of another run or of a checkpoint.
Data:     en_ewt-ud-train.conllu (or .conllu.gz), en_ewt-ud-dev.conllu and
          en_ewt-ud-test.conllu in a folder
          (github.com/UniversalDependencies/UD_English-EWT).
Command:  python -m lm.main --config=configs/pos.py:dir=data/ewt
          python -m lm.main --config=configs/pos.py:dir=data/ewt,bert \
              --config.init.source=hf:data/minilm
Arguments, joined by commas: quick (a few steps on a few sentences of its own),
          dir=FOLDER, bert.
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
    arg = parse_arg(arg, quick=False, dir="data/ewt", bert=False)
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "2 epochs" if arg.bert else "6 epochs"
    c.batch_size = 32
    c.seq_len = 64

    c.objective = dict(name="tagging", labels=LABELS)
    if arg.bert:
        c.model = dict(name="transformer", preset="hf", vocab_size=None)
        c.tokenizer = None
        c.optim = dict(
            name="adamw", lr=2e-4, schedule="linear", warmup="10%", weight_decay=0.01
        )
        c.init = dict(source=None, missing=("heads/tag/.*",))
    else:
        c.model = dict(
            name="rnn",
            cell="lstm",
            bidirectional=True,
            num_layers=1,
            d_model=256,
            characters=30,
            dropout=0.5,
        )
        c.objective.update(decoder="crf", wrap="none", characters=20)
        c.tokenizer = dict(name="word", lowercase=True, min_count=2)
        c.optim = dict(name="adamw", lr=2e-3, schedule="linear", warmup="5%", clip=5.0)

    def sources(part: str) -> dict:
        # A glob: train may be compressed.
        file = dict(name="conll", files=f"{arg.dir}/en_ewt-ud-{part}.conllu*")
        file.update(format="conllu", columns=dict(words=2, tags=4))
        if arg.quick:
            items = tuple(record(text) for text in SENTENCES)
            file = dict(name="memory", items=items, lists=True)
        return dict(sources=[file])

    # A batch of BERT is sentences, as in ner.py: packed rows would halve the updates.
    c.data = dict(**sources("train"), pack=not arg.bert)
    dev, test = (dict(**sources(part), pack=False) for part in ("dev", "test"))
    c.evals = dict(
        dev=dict(evaluator="tags", data=dev, every="1 epochs"),
        test=dict(evaluator="tags", data=test, every="100%"),
    )
    c.checkpoint = dict(every="1 epochs", keep_last=1)
    c.checkpoint.update(best="dev/accuracy", best_mode="max")
    c.log = dict(every=20)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 8
        c.seq_len = 16
        c.model.update(d_model=32)
        c.tokenizer.min_count = 1
        c.log.every = 2
    return c
