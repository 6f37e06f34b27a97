"""What must not change a loss or a gradient, tried on a small model of a config.

Each check computes the same thing in two ways or more: the ways are those of a real
run (lm.run, lm.training.step), the numbers are the loss and the gradient of every
parameter.
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
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.training import sharding

Arrays = dict[str, np.ndarray]
ROWS = 8  # of the batch; also the devices that share it
PADDING = 8  # places added to each row
# A difference is taken relative to the largest number of its array; of an array whose
# numbers are all far below the largest of all, relative to this part of those.
FLOOR = 1e-3
TOLERANCE = 1e-4  # of float32; a defect is a hundred times that and more


class NotApplicable(Exception):
    """The check says nothing about this config; the text says why."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest relative difference, and the first array beyond the tolerance."""

    largest: float
    first: str | None


def compare(expected: Arrays, *others: Arrays) -> Difference:
    """Where arrays of the same names differ most, over all of the others."""
    largest, first = 0.0, None
    top = max(np.abs(array).max(initial=0.0) for array in expected.values())
    for other in others:
        for name, array in expected.items():
            scale = max(np.abs(array).max(initial=0.0), FLOOR * top)
            gap = np.abs(array - other[name]).max(initial=0.0)
            share = float(gap / scale) if scale else float(gap)
            if not share <= TOLERANCE:  # not a number is beyond it, too
                first = first or name
            largest = max(largest, share) if share == share else share
    return Difference(largest, first)


def exact(config: Config) -> Config:
    """Makes the config of comparisons: float32, no dropout, attention by XLA, one mesh.

    The model has positions for padded rows, and for two rows in one.
    """
    tree = configs.plain(config, "config")
    objective = runs.open_objective(config)
    model = runs.open_model(config, objective)
    longest = max(objective.lengths(config.seq_len).values())
    for path, value in model.exact(2 * longest + PADDING).items():
        change(tree["model"], path, value)
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

    The parameters are those of a start, stirred: what is zero at first hides mistakes.
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
        """The loss, and the gradient by path.

        Args:
          batch: another one than the subject's.
          changes: of the config; dots are written as `__`.
        """
        tree = configs.plain(self.config, "config")
        for path, value in changes.items():
            change(tree, path.replace("__", "."), value)
        config = configs.resolve(tree)
        program = self.program(config)
        training = runs.open_training(config, self.corpus, program, self.steps_of)
        with jax.set_mesh(program.mesh):
            places = jax.tree.map(lambda leaf: leaf.sharding, program.params)
            state = training.start(jax.device_put(self.params, places))
            given = runs.on_devices(batch or self.batch, program.mesh)
            loss = jax.jit(training.loss)(state, given)
            gradients = training.gradients(state, given)
            found = {"loss": loss} | trees.flatten(gradients)
        return {name: np.asarray(x, np.float64) for name, x in found.items()}


def padding(s: Subject) -> Difference:
    """Places behind the end of a row change nothing."""
    return compare(s.expected, s.numbers(padded(s.batch)))


def padded(batch: Mapping[str, np.ndarray], count: int = PADDING) -> Arrays:
    """Each row with `count` empty places more, on both sides where it has two."""
    out = dict(batch)
    for name in by_place(batch):
        width = [(0, 0)] * batch[name].ndim
        width[1] = (0, count)
        out[name] = np.pad(batch[name], width)
    return out


def by_place(batch: Mapping[str, np.ndarray]) -> list[str]:
    """The arrays that have an item for each place of a row, of either side."""
    listed = {"target_positions", "targets", "weights"}
    apart = listed if "target_positions" in batch else set()
    return [name for name, x in batch.items() if x.ndim > 1 and name not in apart]


def packing(s: Subject) -> Difference:
    """Two rows in one, as segments of their own, say what they say apart."""
    return compare(s.expected, s.numbers(packed(s.batch)))


def packed(batch: Mapping[str, np.ndarray]) -> Arrays:
    """The batch with every two rows in one of twice the length.

    Raises:
      NotApplicable: something is said of a row as a whole.
    """
    whole = [name for name, x in batch.items() if x.ndim == 1]
    if whole:
        raise NotApplicable(f"{', '.join(whole)} for a row as a whole")
    segments = [name for name in batch if name.endswith("segment_ids")]
    if not segments:
        raise NotApplicable("rows that are no texts")
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
    """The rows of a batch in another order are the same batch."""
    turned = {name: x[::-1].copy() for name, x in s.batch.items()}
    return compare(s.expected, s.numbers(turned))


def accumulation(s: Subject) -> Difference:
    """Micro-batches add up to the batch, however uneven their counts."""
    return compare(s.expected, *(s.numbers(grad_accum=n) for n in (2, ROWS)))


def scan(s: Subject) -> Difference:
    """The layers scanned are the layers one after the other."""
    return compare(s.numbers(compute__unroll=1), s.numbers(compute__unroll=0))


def remat(s: Subject) -> Difference:
    """What is computed again in the backward pass is what was computed."""
    others = (s.numbers(compute__remat=kind) for kind in ("dots", "full"))
    return compare(s.numbers(compute__remat="none"), *others)


def devices(s: Subject) -> Difference:
    """One device, and several: copies of the model, and shards of it."""
    if len(jax.devices()) < ROWS:
        raise NotApplicable(f"{len(jax.devices())} devices here, {ROWS} wanted")
    meshes = ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2))
    names = [f"mesh__{axis}" for axis in sharding.AXES]
    return compare(
        s.expected, *(s.numbers(None, **dict(zip(names, sizes))) for sizes in meshes)
    )


def cache(s: Subject) -> Difference:
    """A text read in parts, with a cache, gets the logits of one that is read whole."""
    model = able(s, "extend")
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
    places = source["source_inputs"].shape[1] if source else 0
    held = model.make_cache(rows, length, places)
    # First half of the text at once, as a prompt; then token by token.
    ends = [length // 2, *range(length // 2 + 1, length + 1)]
    logits, begin = [], 0
    for end in ends:
        part = {name: x[:, begin:end] for name, x in whole.items()}
        found, held = grow(part if begin else part | source, held)
        logits.append(found)
        begin = end
    expected = read(whole | source)
    return compare(
        {"logits": np.asarray(expected, np.float64)},
        {"logits": np.asarray(jnp.concatenate(logits, axis=1), np.float64)},
    )


def carry(s: Subject) -> Difference:
    """Two halves of a row, the state carried, get the hidden states of the row."""
    model = able(s, "carry")
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


def able(s: Subject, word: str) -> Any:
    """Gives the model, if it has the ability.

    Raises:
      NotApplicable: it has not.
    """
    model = s.program(s.config).model
    if word not in model.can:
        raise NotApplicable(f"a model without {word!r}")
    return model


def one_text(s: Subject) -> Arrays:
    """The rows of the batch, each read as one text without padding.

    Raises:
      NotApplicable: they are no texts.
    """
    if "segment_ids" not in s.batch:
        raise NotApplicable("rows that are no texts")
    inputs = s.batch["inputs"]
    places = np.arange(inputs.shape[1], dtype=np.int32)
    return {
        "inputs": inputs,
        "positions": np.broadcast_to(places, inputs.shape),
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
