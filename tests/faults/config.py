"""The tiny run of the tests; `:mixed` has three sources, `:decoder` says something."""

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
    if arg == "decoder":
        tree["model"] |= {"kind": "decoder", "token_types": 0}
        tree["objective"] = {"name": "causal_lm"}
        tree |= {"steps": 2, "evals": {}}
    return tree
