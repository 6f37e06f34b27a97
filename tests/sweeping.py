"""Tiny fits to be swept: bigrams and trigrams, two seeds each; the argument is one of

`folds` (classifiers that are evaluated on the fold held out), `broken` (one of three
settings reads the file `late.txt` in the current folder), `plain` (no sweep).
"""

from tests import fitted, tiny

TEXTS = [("a good film", 1), ("a bad film", 0), ("good fun", 1), ("bad noise", 0)]


def get_config(arg: str = "") -> dict:
    if arg != "folds":
        config = fitted.get_config()
        config["checkpoint"] |= {"best": "heldout/loss"}
        return config
    items = [{"text": f"{t} {n}", "label": str(k)} for n in range(6) for t, k in TEXTS]
    data = {"sources": [{"name": "memory", "items": items}], "pack": False}
    dev = {"evaluator": "predictions", "write": True, "every": 2, "resamples": 0}
    dev |= {"metrics": ("accuracy",), "plain_methods": False, "data": data}
    return tiny.tree(
        steps=4,
        batch_size=4,
        objective={"name": "classification", "labels": ("0", "1")},
        data=data | {"max_unknown": 1.0, "fold_labels": "label"},
        evals={"dev": dev},
        checkpoint={"every": 2, "best": "dev/accuracy", "best_mode": "max"},
    )


def sweep(add, arg):
    if arg in ("folds", "plain"):
        add()
    elif arg == "broken":
        for order in (2, 3):
            add({"model.order": order})
        sources = [{"name": "text", "files": "late.txt", "split": "line"}]
        add({"data.sources": sources, "model.order": 4})
    else:
        for order in (2, 3):
            for seed in (0, 1):
                add({"model.order": order}, seed=seed)
