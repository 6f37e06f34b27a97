"""A hidden Markov model as a language model, fitted by Baum-Welch without labels.

What:     hidden states that each draw a character (Rabiner 1989); the most likely of
          several random beginnings after 10 passes is fitted further. A state sees one
          character, so the model knows less than n-grams: see the table of results.
Data:     input.txt of https://github.com/karpathy/char-rnn (data/tinyshakespeare), its
          last tenth held out; without a file, the built-in English reference text.
Command:  python -m lm.main --config=configs/hmm.py:text=input.txt
Arguments, joined by commas: quick (4 states, 3 passes), text=FILE,
          states=64.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, text="", states=64)
    c = ml_collections.ConfigDict()
    c.job = "fit"
    c.seed = 0
    c.steps = 50  # passes
    c.batch_size = 128
    c.seq_len = 256

    c.tokenizer = dict(name="word", kind="char", specials=("unk",))
    c.model = dict(name="hmm", states=arg.states, restarts=3, trials=10)
    c.objective = dict(name="causal_lm")

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split="file", held="end")
    train = dict(source, part="train", holdout=0.1)
    heldout = dict(sources=[dict(source, part="heldout", holdout=0.1)])
    c.data = dict(sources=[train])
    c.evals = dict(heldout=dict(evaluator="mean", data=heldout, every="20%"))
    c.checkpoint = dict(every=5, keep_last=1)
    c.log = dict(every=1)

    if arg.quick:
        c.steps = 3
        c.model.update(states=4, restarts=2, trials=1)
        c.evals.heldout.limit = 64
    return c
