"""Runs of what lm has never heard of: `:decay` and `:skipgram`."""

from tests import tiny


def get_config(arg: str = "decay") -> dict:
    tree = tiny.tree(checkpoint={"every": 4, "keep_last": 2})
    tree["model"] = {"name": f"tests.foreign.{arg}"}
    tree["objective"] = {"name": "causal_lm"}
    tree["mesh"] = {"data": -1}
    # A parameter of an unknown name: whether weights decay must be said of it.
    tree["optim"]["decay_mask"] = [("rate", 0.0), (".*", 1.0)]
    if arg == "skipgram":
        tree["objective"] = {"name": "tests.foreign.skipgram"}
        tree["data"]["pack"] = False
    return tree
