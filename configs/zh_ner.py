"""Named entities in Chinese, character by character (resumes): BiLSTM-CRF, or BERT.

What:     from scratch, a bidirectional LSTM over characters with a conditional random
          field on top (Lample et al. 2016; the baseline of Zhang and Yang 2018); with
          `bert`, the encoder of another run or of a checkpoint.
Data:     train.char.bmes, dev.char.bmes and test.char.bmes in a folder, a character and
          its tag on a line, tags BMES (github.com/jiesutd/LatticeLSTM, ResumeNER).
Command:  python -m lm.main --config=configs/zh_ner.py:dir=data/resume
Arguments, joined by commas: quick (a few steps on a few sentences of its own),
          dir=FOLDER, bert.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

TYPES = ("CONT", "EDU", "LOC", "NAME", "ORG", "PRO", "RACE", "TITLE")
LABELS = ("O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BMES"))

# Text in parts, those of entities with their type.
SENTENCES = (
    "王伟/NAME ，男， 北京大学/ORG 教授/TITLE 。",
    "李娜/NAME ， 中国国籍/CONT ，本科学历。",
    "张三/NAME 任 上海公司/ORG 董事长/TITLE 。",
    "汉族/RACE ， 大学本科/EDU 。",
    "无境外永久居留权。",
)


def record(text: str) -> dict:
    words, tags = [], []
    for part in text.split():
        name, _, kind = part.partition("/")
        words += name
        letters = "B" + "M" * (len(name) - 2) + "E"
        tags += [f"{x}-{kind}" for x in letters] if kind else ["O"] * len(name)
    return dict(words=words, tags=tags)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/resume", bert=False)
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "3 epochs" if arg.bert else "10 epochs"
    c.batch_size = 32
    c.seq_len = 64

    c.objective = dict(name="tagging", labels=LABELS, split="characters")
    if arg.bert:
        c.model = dict(name="transformer", preset="hf", vocab_size=None)
        c.tokenizer = None
        c.optim = dict(name="adamw", lr=5e-5, schedule="linear", warmup="10%", clip=1.0)
        c.init = dict(source=None, missing=("heads/tag/.*",))
    else:
        c.model = dict(
            name="rnn",
            cell="lstm",
            bidirectional=True,
            num_layers=1,
            d_model=256,
            dropout=0.5,
        )
        c.objective.update(decoder="crf", wrap="none")
        c.tokenizer = dict(name="word", kind="char")
        c.optim = dict(name="adamw", lr=5e-3, schedule="linear", warmup="5%", clip=5.0)

    def sources(part: str) -> dict:
        file = dict(name="conll", files=f"{arg.dir}/{part}.char.bmes")
        if arg.quick:
            items = tuple(record(text) for text in SENTENCES)
            file = dict(name="memory", items=items, lists=True)
        return dict(sources=[file])

    scored = dict(evaluator="tags", join="", batch_size=32)
    # A batch of BERT is sentences, as in ner.py: packed rows would halve the updates.
    c.data = dict(**sources("train"), pack=not arg.bert)
    dev, test = (dict(**sources(part), pack=False) for part in ("dev", "test"))
    c.evals = dict(
        dev=dict(**scored, data=dev, every="2 epochs"),
        test=dict(**scored, data=test, every="100%"),
    )
    c.checkpoint = dict(every="2 epochs", keep_last=1, best="dev/f1", best_mode="max")
    c.log = dict(every=20)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 8
        c.seq_len = 16
        c.model.update(d_model=32)
        c.log.every = 2
    return c
