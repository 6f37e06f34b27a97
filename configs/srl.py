"""Semantic roles of given predicates (Universal PropBank English EWT, the dev file).

What:     a row for each predicate of a sentence, whose pieces have token type 1; each
          word's tag is its role for that predicate or _ (roles stand at the heads of
          their phrases, so there are no spans of several words). F1 is that of
          (predicate, word, role), without V. A small new encoder; with `bert`, that of
          another run or of a checkpoint (Shi and Lin 2019).
Data:     en_ewt-up-dev.conllu in a folder (github.com/UniversalPropositions/UP-1.0;
          the training file is too large for many mirrors). Of its predicates every
          fifth is held out (`part`), so the figures compare with no published ones:
          a sentence may have predicates on both sides.
Command:  python -m lm.main --config=configs/srl.py:dir=data/up
          python -m lm.main --config=configs/srl.py:dir=data/up,bert \
              --config.init.source=hf:data/minilm
Arguments, joined by commas: quick (a few steps on a few sentences of its own),
          dir=FOLDER, bert.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

# The roles of the file, from the most frequent; V is the predicate itself.
ROLES = (
    *("_", "V", "ARG1", "ARG0", "ARG2", "ARGM-TMP", "ARGM-ADV", "ARGM-MOD"),
    *("ARGM-ADJ", "ARGM-LOC", "ARGM-NEG", "ARGM-DIS", "ARGM-MNR", "ARGM-EXT", "ARG3"),
    *("ARGM-LVB", "ARGM-PRR", "ARGM-CAU", "R-ARG1", "ARGM-PRP", "R-ARG0", "C-ARG1"),
    *("ARGM-PRD", "ARGM-DIR", "ARG4", "ARGM-GOL", "C-V", "ARGM-CXN", "ARGM-COM"),
    *("R-ARGM-LOC", "R-ARGM-TMP", "C-ARGM-CXN", "C-ARG2", "C-ARG3", "C-ARG0"),
    *("ARGM-REC", "R-ARG2", "C-ARGM-LOC", "R-ARGM-MNR", "C-ARGM-EXT", "R-ARGM-ADV"),
    *("C-ARGM-MNR", "R-ARGM-COM", "ARG5", "R-ARGM-CAU", "R-ARG3"),
)

SENTENCES = (
    "Ana/ARG0 sees/V the dog/ARG1",
    "yesterday/ARGM-TMP she/ARG0 gave/V him/ARG2 a book/ARG1",
    "the cat/ARG0 can/ARGM-MOD not/ARGM-NEG open/V doors/ARG1",
    "they/ARG0 slept/V in Leeds/ARGM-LOC",
)


def record(text: str) -> dict:
    pairs = [word.partition("/") for word in text.split()]
    roles = [role or "_" for _, _, role in pairs]
    words = [word for word, _, _ in pairs]
    return dict(words=words, tags=roles, predicate=roles.index("V"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/up", bert=False)
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "5 epochs"
    c.batch_size = 16
    c.seq_len = 64

    c.objective = dict(
        name="tagging",
        labels=ROLES,
        scheme="word",
        outside=("_", "V"),
        mark="predicate",
    )
    c.optim = dict(
        name="adamw", lr=2e-4, schedule="linear", warmup="10%", weight_decay=0.01
    )
    if arg.bert:
        c.model = dict(name="transformer", preset="hf", vocab_size=None)
        c.tokenizer = None
        c.init = dict(source=None, missing=("heads/tag/.*",))
    else:
        c.model = dict(name="transformer", preset="bert_tiny", vocab_size=None)
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=4096, lowercase=True)
        c.optim.lr = 1e-3

    def sources(part: str) -> dict:
        file = dict(name="conll", files=f"{arg.dir}/en_ewt-up-dev.conllu")
        file.update(format="conllu", columns=dict(words=2), frames=11)
        file.update(part=part, holdout=0.2)
        if arg.quick:
            items = tuple(record(text) for text in SENTENCES)
            file = dict(name="memory", items=items, lists=True)
        return dict(sources=[file])

    # A batch of BERT is sentences, as in ner.py: packed rows would halve the updates.
    c.data = dict(**sources("train"), pack=not arg.bert)
    heldout = dict(**sources("heldout"), pack=False)
    c.evals = dict(heldout=dict(evaluator="tags", data=heldout, every="1 epochs"))
    c.checkpoint = dict(every="1 epochs", keep_last=1)
    c.log = dict(every=20)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 8
        c.seq_len = 32
        c.tokenizer.vocab_size = 120
        c.log.every = 2
    return c
