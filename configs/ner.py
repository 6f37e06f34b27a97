"""Named entities in noisy English text (WNUT17): BiLSTM-CRF, or BERT fine-tuned.

What:     from scratch, a bidirectional LSTM over words and their bytes with a
          conditional random field on top (Ma and Hovy 2016); with `bert`, the encoder
          of another run or of a checkpoint, whose words are read at their first pieces
          (Devlin et al. 2019).
          Six types of entities, exact spans (Derczynski et al. 2017).
Data:     wnut17train.conll, emerging.dev.conll and emerging.test.annotated in a folder,
          `word<TAB>tag`, tags BIO (github.com/leondz/emerging_entities_17).
Command:  python -m lm.main --config=configs/ner.py:dir=data/wnut17
          python -m lm.main --config=configs/ner.py:dir=data/wnut17,bert \
              --config.init.source=hf:data/minilm
Arguments, joined by commas: quick (a few steps on a dozen sentences of its own),
          dir=FOLDER, bert.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
LABELS = ("O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BI"))

# Word/tag; a word without a tag is outside of every entity.
SENTENCES = (
    "Empire/B-location State/I-location Building/I-location is lit",
    "my cousin Ana/B-person sings on Friday",
    "we saw Star/B-creative-work Wars/I-creative-work in Leeds/B-location",
    "Acme/B-corporation sells the Zed/B-product phone",
    "the Beatles/B-group played in Hamburg/B-location",
    "no entity in this one",
)


def records(sentences: tuple[str, ...]) -> tuple[dict, ...]:
    pairs = [[word.partition("/") for word in text.split()] for text in sentences]
    return tuple(
        dict(words=[w for w, _, _ in s], tags=[tag or "O" for _, _, tag in s])
        for s in pairs
    )


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/wnut17", bert=False)
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "5 epochs" if arg.bert else "20 epochs"
    c.batch_size = 16
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

    train = dict(name="conll", files=f"{arg.dir}/wnut17train.conll")
    dev = dict(name="conll", files=f"{arg.dir}/emerging.dev.conll")
    test = dict(name="conll", files=f"{arg.dir}/emerging.test.annotated")
    if arg.quick:
        items = records(SENTENCES)
        train = dev = test = dict(name="memory", items=items, lists=True)
    # A batch of BERT is sentences: packed rows would hold twice as many, and an epoch
    # half the updates.
    c.data = dict(sources=[train], max_unknown=0.5, pack=not arg.bert)
    alone = dict(max_unknown=0.5, pack=False)
    c.evals = dict(
        dev=dict(evaluator="tags", data=dict(sources=[dev], **alone), every="1 epochs"),
        test=dict(evaluator="tags", data=dict(sources=[test], **alone), every="100%"),
    )
    c.checkpoint = dict(every="1 epochs", keep_last=1, best="dev/f1", best_mode="max")
    c.log = dict(every=20)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 8
        c.seq_len = 16
        c.model.update(d_model=32)
        c.tokenizer.min_count = 1
        c.log.every = 2
    return c
