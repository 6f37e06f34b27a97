"""The tiny run of the tests, as a config file; `:pairs` has a second source."""

from tests import tiny


def get_config(arg: str = "") -> dict:
    tree = tiny.tree(checkpoint={"every": 2, "keep_last": 3})
    if arg == "mixed":  # three sources, a bad record in twenty, several epochs
        sources = [
            {"name": "memory", "items": tiny.documents(9, seed=s), "weight": float(s)}
            for s in (1, 2, 3)
        ]
        tree["data"] = {"sources": sources, "pack": True}
        tree["steps"] = 24
    return tree
