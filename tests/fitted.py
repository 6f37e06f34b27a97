"""Tiny fits: trigrams of words by one pass, `:kneser_ney` and the like with another
smoothing, and `:mixture`, several passes of EM.
"""

from tests import tiny


def get_config(arg: str = "") -> dict:
    config = tiny.tree(
        job="fit",
        steps=1,
        seq_len=128,
        model={"name": "ngram", "order": 3, "k": 0.1},
        objective={"name": "causal_lm"},
        checkpoint={"every": 1, "keep_last": 3},
    )
    del config["optim"]
    config["evals"]["heldout"]["every"] = 1
    if arg and arg != "mixture":
        config["model"] |= {"smoothing": arg, "discount_fallback": True}
    if arg == "mixture":
        config |= {"steps": 6, "model": {"name": "tests.mixture"}}
        config["checkpoint"]["every"] = config["evals"]["heldout"]["every"] = 2
        config["data"]["pack"] = False
    return config
