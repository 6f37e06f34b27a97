"""Checks of changes that must not change a loss or gradient, on a small model.

Each check computes the loss and the gradient of every parameter in two ways or more,
by the functions of a real run (lm.run, lm.training.step).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import run as runs
from lm import trees
from lm.config import match
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.training import sharding

Arrays = dict[str, np.ndarray]
ROWS = 8  # of the batch; also the devices that share it
PADDING = 8  # positions added to each row
# A difference is relative to the largest number of its array, which counts as at least
# this part of the largest number of all arrays.
FLOOR = 1e-3
TOLERANCE = 1e-4  # of float32; defects are at least a hundred times as large


class NotApplicable(Exception):
    """The check does not apply to this config; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest relative difference, and the first array beyond the tolerance."""

    largest: float
    first: str | None


def compare(expected: Arrays, *others: Arrays) -> Difference:
    """Finds the largest difference of arrays of the same name, over all others."""
    largest, first = 0.0, None
    top = max(np.abs(array).max(initial=0.0) for array in expected.values())
    for other in others:
        for name, array in expected.items():
            scale = max(np.abs(array).max(initial=0.0), FLOOR * top)
            gap = np.abs(array - other[name]).max(initial=0.0)
            share = float(gap / scale) if scale else float(gap)
            if not share <= TOLERANCE:  # True for NaN as well.
                first = first or name
            largest = max(largest, share) if share == share else share
    return Difference(largest, first)


def exact(config: Config) -> Config:
    """Makes the config of comparisons: float32, no dropout, attention by XLA, no mesh.

    The model has enough positions for padded rows, and for two rows in one.
    """
    tree = configs.plain(config, "config")
    objective = runs.open_objective(config)
    model = runs.open_model(config, objective)
    longest = max(objective.lengths(config.seq_len).values())
    for path, value in model.exact(2 * longest + PADDING).items():
        change(tree["model"], path, value)
    for path, value in match.open_adapter(config).exact().items():
        change(tree["adapter"], path, value)
    tree["compute"] |= {"dtype": "float32", "attention": "xla", "precision": "highest"}
    tree["batch_size"], tree["grad_accum"] = ROWS, 1
    for axis in sharding.AXES:
        tree["mesh"].pop(axis)
    return configs.resolve(tree)


def change(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the field of a config's tree that a dotted path names."""
    *parents, last = path.split(".")
    functools.reduce(dict.__getitem__, parents, tree)[last] = value


class Subject:
    """A config's model with parameters and a batch of its data.

    The parameters are initial ones with noise added, since zeros would hide mistakes.
    """

    def __init__(self, config: Config, workdir: Path, note: runs.Note):
        self.config = exact(config)
        self.corpus = runs.open_corpus(self.config, workdir, note)
        self.steps_of = runs.durations(self.config, self.corpus)
        examples = [self.corpus.stream.example(n) for n in range(ROWS)]
        names = [name for name in examples[0] if name != "example_ids"]
        self.batch = {name: np.stack([e[name] for e in examples]) for name in names}
        program = self.program(self.config)
        with jax.set_mesh(program.mesh):
            start = jax.device_get(program.init(jax.random.key(self.config.seed)))
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda x: x + rng.normal(0.0, 0.05, x.shape).astype(x.dtype), start
        )

    def program(self, config: Config) -> runs.Program:
        count = math.prod(max(config.mesh[axis], 1) for axis in sharding.AXES)
        return runs.open_program(config, self.corpus, jax.devices()[:count])

    @functools.cached_property
    def expected(self) -> Arrays:
        return self.numbers()

    def numbers(self, batch: Arrays | None = None, **changes: Any) -> Arrays:
        """Computes the loss, and the gradients by path.

        Args:
          batch: None is the subject's own.
          changes: values of config fields, in whose names `__` stands for a dot.
        """
        tree = configs.plain(self.config, "config")
        for path, value in changes.items():
            change(tree, path.replace("__", "."), value)
        config = configs.resolve(tree)
        program = self.program(config)
        training = runs.open_training(config, self.corpus, program, self.steps_of)
        with jax.set_mesh(program.mesh):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, program.params)
            state = training.start(jax.device_put(self.params, shardings))
            given = runs.on_devices(batch or self.batch, program.mesh)
            loss = jax.jit(training.loss)(state, given)
            gradients = training.gradients(state, given)
            found = {"loss": loss} | trees.flatten(gradients)
        return {name: np.asarray(x, np.float64) for name, x in found.items()}


def padding(s: Subject) -> Difference:
    """Compares rows with rows that have padding at their end."""
    return compare(s.expected, s.numbers(padded(s.batch)))


def padded(batch: Mapping[str, np.ndarray], count: int = PADDING) -> Arrays:
    """Adds `count` positions of padding to each row, and to its source, if any."""
    out = dict(batch)
    for name in by_position(batch):
        width = [(0, 0)] * batch[name].ndim
        width[1] = (0, count)
        out[name] = np.pad(batch[name], width)
    return out


def by_position(batch: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of arrays that have an item for each position of a row."""
    listed = {"target_positions", "targets", "weights"}
    apart = listed if "target_positions" in batch else set()
    lengths = {x.shape[1] for name, x in batch.items() if name.endswith("inputs")}
    return [
        name
        for name, x in batch.items()
        if x.ndim > 1 and name not in apart and x.shape[1] in (lengths or {x.shape[1]})
    ]


def packing(s: Subject) -> Difference:
    """Compares rows with pairs of rows packed into one as segments."""
    return compare(s.expected, s.numbers(packed(s.batch)))


def packed(batch: Mapping[str, np.ndarray]) -> Arrays:
    """Packs every two rows of a batch into one of twice the length.

    Raises:
      NotApplicable: an array has a value for each row, or rows are not texts.
    """
    whole = [name for name, x in batch.items() if x.ndim == 1]
    if whole:
        raise NotApplicable(f"{', '.join(whole)} for a row, not for a token")
    segments = [name for name in batch if name.endswith("segment_ids")]
    if not segments:
        raise NotApplicable("rows that are not texts")
    first = {name: x[0::2] for name, x in batch.items()}
    second = {name: x[1::2] for name, x in batch.items()}
    known = np.max([first[name].max(axis=1) for name in segments], axis=0)[:, None]
    for name in segments:
        second[name] = np.where(second[name] > 0, second[name] + known, 0)
    if "target_positions" in batch:
        second["target_positions"] = (
            second["target_positions"] + (batch["inputs"].shape[1])
        )
    return {
        name: np.concatenate([first[name], second[name]], axis=1).astype(x.dtype)
        for name, x in batch.items()
    }


def order(s: Subject) -> Difference:
    """Compares a batch with the same rows in reverse order."""
    turned = {name: x[::-1].copy() for name, x in s.batch.items()}
    return compare(s.expected, s.numbers(turned))


def accumulation(s: Subject) -> Difference:
    """Compares a batch with its micro-batches, whose counts differ.

    Raises:
      NotApplicable: micro-batches have another loss.
    """
    if s.corpus.objective.interacts:
        raise NotApplicable("examples that depend on each other")
    return compare(s.expected, *(s.numbers(grad_accum=n) for n in (2, ROWS)))


def scan(s: Subject) -> Difference:
    """Compares a scan over layers with unrolled layers."""
    return compare(s.numbers(compute__unroll=1), s.numbers(compute__unroll=0))


def remat(s: Subject) -> Difference:
    """Compares the ways of rematerialisation."""
    others = (s.numbers(compute__remat=kind) for kind in ("dots", "full"))
    return compare(s.numbers(compute__remat="none"), *others)


def devices(s: Subject) -> Difference:
    """Compares one device with several, by copies and by shards of the model."""
    if len(jax.devices()) < ROWS:
        raise NotApplicable(f"{len(jax.devices())} devices here, {ROWS} wanted")
    meshes = ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2))
    names = [f"mesh__{axis}" for axis in sharding.AXES]
    return compare(
        s.expected, *(s.numbers(None, **dict(zip(names, sizes))) for sizes in meshes)
    )


def cache(s: Subject) -> Difference:
    """Compares the logits of a text with those of its parts by a cache."""
    model = model_with(s, "extend")
    whole = one_text(s)
    rows, length = whole["inputs"].shape
    source = {name: x for name, x in s.batch.items() if name.startswith("source_")}
    if source:
        segments = source["source_segment_ids"]
        source["source_segment_ids"] = (segments == 1).astype(segments.dtype)
    variables = {"params": jax.tree.map(jnp.asarray, s.params)}

    def all_at_once(bound: Any, batch: dict) -> jax.Array:
        return bound.logits(bound(batch, train=False))

    def extend(bound: Any, batch: dict, cache: Any) -> tuple:
        hidden, cache = bound.extend(batch, cache)
        return bound.logits(hidden), cache

    read = jax.jit(lambda batch: model.apply(variables, batch, method=all_at_once))
    grow = jax.jit(
        lambda batch, cache: model.apply(variables, batch, cache, method=extend)
    )
    source_length = source["source_inputs"].shape[1] if source else 0
    cached = model.make_cache(rows, length, source_length)
    # The first half of the text is read at once, as a prompt, the rest token by token.
    ends = [length // 2, *range(length // 2 + 1, length + 1)]
    logits, begin = [], 0
    for end in ends:
        part = {name: x[:, begin:end] for name, x in whole.items()}
        found, cached = grow(part if begin else part | source, cached)
        logits.append(found)
        begin = end
    expected = read(whole | source)
    return compare(
        {"logits": np.asarray(expected, np.float64)},
        {"logits": np.asarray(jnp.concatenate(logits, axis=1), np.float64)},
    )


def carry(s: Subject) -> Difference:
    """Compares hidden states of a row with those of its halves by a carried state."""
    model = model_with(s, "carry")
    whole = one_text(s)
    rows, length = whole["inputs"].shape
    params = jax.tree.map(jnp.asarray, s.params)

    @jax.jit
    def read(batch: Arrays, carry: Any) -> tuple:
        variables = {"params": params, "carry": carry}
        hidden, left = model.apply(variables, batch, train=False, mutable=["carry"])
        return hidden, left["carry"]

    state = model.make_carry(rows)
    expected, _ = read(whole, state)
    halves = []
    for part in (slice(length // 2), slice(length // 2, length)):
        hidden, state = read({name: x[:, part] for name, x in whole.items()}, state)
        halves.append(hidden)
    return compare(
        {"hidden": np.asarray(expected, np.float64)},
        {"hidden": np.asarray(jnp.concatenate(halves, axis=1), np.float64)},
    )


def model_with(s: Subject, word: str) -> Any:
    """Returns the model, if it has the ability.

    Raises:
      NotApplicable: the model lacks it.
    """
    model = s.program(s.config).model
    if word not in model.can:
        raise NotApplicable(f"a model without {word!r}")
    return model


def one_text(s: Subject) -> Arrays:
    """Returns the inputs of the batch with each row as one text without padding.

    Raises:
      NotApplicable: the rows are not texts.
    """
    if "segment_ids" not in s.batch:
        raise NotApplicable("rows that are not texts")
    inputs = s.batch["inputs"]
    positions = np.arange(inputs.shape[1], dtype=np.int32)
    return {
        "inputs": inputs,
        "positions": np.broadcast_to(positions, inputs.shape),
        "segment_ids": np.ones_like(inputs),
    }


CHECKS: dict[str, Callable[[Subject], Difference]] = {
    "padding": padding,
    "packing": packing,
    "order": order,
    "accumulation": accumulation,
    "scan": scan,
    "remat": remat,
    "devices": devices,
    "cache": cache,
    "carry": carry,
}
