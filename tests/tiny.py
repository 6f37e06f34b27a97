"""A tiny run for tests: two layers, 16 wide, a memory source, a few steps."""

import contextlib
import copy
import functools
import io
import json
import math
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import run as runs
from lm import train
from lm.config import resolve as configs
from lm.training import sharding, step
from lm.workdir import checkpoint
from lm.workdir.writer import read_rows

WORDS = [
    *("the", "a", "old", "new", "small", "red", "blue", "dog", "cat", "bird", "fish"),
    *("tree", "house", "river", "hill", "runs", "sees", "likes", "finds", "eats"),
    *("sleeps", "under", "over", "near", "with", "and", "then", "now", "here", "there"),
]


def few(names, fast):
    """The parameters of a test, of which those not in `fast` run with the slow ones."""
    names = list(names)
    assert {*fast} <= {*names}
    slow = pytest.mark.slow
    return [n if n in fast else pytest.param(n, marks=slow, id=str(n)) for n in names]


def sentence(rng) -> str:
    return " ".join(rng.choice(WORDS, size=int(rng.integers(4, 9)))) + "."


def documents(count: int, seed: int = 0) -> tuple[dict, ...]:
    """Texts of a few random sentences each."""
    rng = np.random.default_rng(seed)
    texts = [
        " ".join(sentence(rng) for _ in range(rng.integers(2, 7))) for _ in range(count)
    ]
    return tuple({"text": text} for text in texts)


def tree(**changes) -> dict:
    """A config as its file would give it; changes by dotted path, dots as `__`."""
    source = {"name": "memory", "items": documents(60)}
    heldout = {
        "sources": [{"name": "memory", "items": documents(12, seed=1)}],
    }
    config = {
        "steps": 8,
        "batch_size": 8,
        "seq_len": 24,
        "seed": 3,
        "model": {
            "name": "transformer",
            "num_layers": 2,
            "d_model": 16,
            "num_heads": 2,
            "d_ff": 32,
            "max_len": 24,
        },
        "objective": {"name": "mlm"},
        "tokenizer": {"name": "word", "kind": "word", "special": {}},
        # A constant schedule does not have the number of steps in its program.
        "optim": {"name": "adamw", "lr": 1e-2, "warmup": 2, "schedule": "constant"},
        "data": {"sources": [source], "pack": True},
        "mesh": {"data": 1},
        "checkpoint": {"every": 4, "keep_last": 3},
        "evals": {"heldout": {"evaluator": "mean", "data": heldout, "every": 4}},
        "log": {"every": 2, "tensorboard": False},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = config
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = copy.deepcopy(value)
    # One shape to compile, and rows in the order that the seed alone decides.
    for data in (
        config["data"],
        *(e.get("data", {}) for e in config["evals"].values()),
    ):
        data.setdefault("buckets", 1)
    return config


def config(**changes):
    return configs.resolve(tree(**changes))


def run(settings, workdir: Path, **keywords) -> int:
    """Trains in this process, quietly; `settings` is resolved or a dict of changes."""
    if isinstance(settings, dict) and "model" not in settings:
        settings = config(**settings)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), some_devices(settings):
        return train.train(settings, workdir, **keywords)


def some_devices(settings):
    """As many of the simulated devices as the mesh of the config asks for."""
    sizes = (settings.mesh[axis] for axis in sharding.AXES)
    make, some = sharding.make_mesh, jax.devices()[: math.prod(sizes)]

    def chosen(config, devices=None):
        return make(config, devices or some)

    return mock.patch.object(sharding, "make_mesh", chosen)


def rows(workdir: Path) -> list[dict]:
    return read_rows(workdir / "metrics.jsonl")


def raw_rows(workdir: Path) -> str:
    return (workdir / "metrics.jsonl").read_text()


def state_bits(workdir: Path) -> dict[str, bytes]:
    """Every leaf of the newest checkpoint's state, as bytes."""
    from orbax.checkpoint import v1 as ocp

    state = ocp.load_checkpointables(checkpoint.find(workdir))["state"]
    flat = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in flat
    }


def host(workdir: Path) -> dict:
    return json.loads((checkpoint.find(workdir) / "host.json").read_text())


@functools.partial(jax.jit, static_argnums=0)
def new(model):
    """Fresh parameters; compiled, since one operation at a time takes seconds."""
    return step.make(model, None).init(jax.random.key(0))


def program(settings, workdir: Path):
    """The corpus and the program of a config, for tests of single functions."""
    workdir.mkdir(parents=True, exist_ok=True)
    corpus = runs.open_corpus(settings, workdir, lambda line: None)
    with some_devices(settings):
        return corpus, runs.open_program(settings, corpus)


def batch(corpus, rows=4):
    """The first examples as a batch of device arrays."""
    examples = [corpus.stream.example(n) for n in range(rows)]
    names = [name for name in examples[0] if name != "example_ids"]
    return {name: jnp.stack([e[name] for e in examples]) for name in names}
