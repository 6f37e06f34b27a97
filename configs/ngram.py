"""WikiText-2 by words: a 5-gram model with interpolated modified Kneser-Ney smoothing.

What:     the n-gram language model that neural ones are measured by (Chen and Goodman
          1998), estimated as KenLM's `lmplz` does (Heafield et al. 2013): each line is
          a sentence, blank ones too, and <unk> is a word.
Data:     dir=FOLDER with train.txt.gz (or train.txt), valid.txt and test.txt of
          WikiText-2, or any text in lines.
Command:  python -m lm.main --config=configs/ngram.py:dir=FOLDER
Arguments, joined by commas: dir=FOLDER, quick (bigrams of the built-in text),
          order=5, smoothing=kneser_ney (or witten_bell, stupid_backoff, add_k),
          chars (characters instead of words; Kneser-Ney's discounts then fall back for
          single characters).
Results:  configs/README.md
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, dir="wikitext-2", order=5, smoothing="kneser_ney", chars=False
    )
    c = ml_collections.ConfigDict()
    c.job = "fit"
    c.seed = 0
    c.steps = 1  # passes
    c.batch_size = 128
    c.seq_len = 2048  # longer than any line, so that no context is cut

    kind = "char" if arg.chars else "word"
    c.tokenizer = dict(name="word", kind=kind, specials=("unk", "bos", "eos"))
    c.model = dict(
        name="ngram",
        order=2 if arg.quick else arg.order,
        smoothing=arg.smoothing,
        discount_fallback=arg.chars,
    )
    c.objective = dict(name="causal_lm")

    def text(file: str) -> dict:
        files = f"{arg.dir}/{file}"
        return dict(sources=[dict(name="text", files=files, split="every_line")])

    packed = (Path(arg.dir) / "train.txt.gz").exists()
    train, valid, test = map(
        text, ("train.txt.gz" if packed else "train.txt", "valid.txt", "test.txt")
    )
    if arg.quick:
        train = dict(sources=[dict(name="builtin", part="train")])
        valid = test = dict(sources=[dict(name="builtin", part="heldout")])
    c.data = dict(train, pack=True)
    c.evals = dict(
        valid=dict(evaluator="mean", data=valid, every=1),
        test=dict(evaluator="mean", data=test, every=1),
    )
    c.checkpoint = dict(every=1, keep_last=1)
    c.log = dict(every=1)

    return c
