"""Part: reads weights of another run or of Hugging Face, and reports each parameter."""

import functools
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm.errors import CheckpointError, ConfigError
from lm.hf import checkpoint, importing
from lm.trees import flatten, nest, unflatten
from lm.workdir.checkpoint import (
    Init,
    Leaves,
    leaves_of,
    read_leaves,
    read_state,
    reading,
    show_leaf,
)


@dataclass(frozen=True)
class Report:
    """Lists what `load_params` did.

    Attributes:
      place: the source.
      loaded: paths of the model that have values of the source.
      fresh: paths of the model that keep the values given.
      unused: paths of the source that no parameter uses.
    """

    place: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lists = {"loaded": self.loaded, "fresh": self.fresh, "unused": self.unused}
        counts = ", ".join(f"{len(paths)} {name}" for name, paths in lists.items())
        lines = [f"parameters from {self.place}: {counts}"]
        lines += [
            f"  {name}: {path}" for name in ("fresh", "unused") for path in lists[name]
        ]
        return "\n".join(lines)


def from_source(init: Init, params: Any, note: Callable[[str], None]) -> Any:
    """Returns the parameters of `init.source`; those given where it is None.

    Args:
      init, params: as for `load_params`.
      note: writes the report to the log.

    Raises:
      CheckpointError, ConfigError: as `load_params`.
    """
    if init.source is None:
        return params
    params, report = load_params(init, params)
    note(str(report))
    return params


def load_params(init: Init, params: Any) -> tuple[Any, Report]:
    """Reads parameters from `init.source`, and nothing else of its state.

    Args:
      init: the source run, and which parameters may be renamed or missing; a source
        "hf:DIR" is a directory of Hugging Face.
      params: the model's parameters, arrays or jax.ShapeDtypeStruct; they give the
        shapes, dtypes and shardings.

    Returns:
      `params`, in which the values of the source replace those given, except for the
      leaves in `report.fresh`; and the report.

    Raises:
      CheckpointError: the source is absent or damaged, a parameter is not in it and
        no regex of `init.missing` allows that, or a shape or dtype differs.
      ConfigError: a regex of `init.map` matches nothing, or is none.
    """
    may_miss = [_regex("init.missing", pattern) for pattern in init.missing]
    place, saved, read = _open(init)
    target = flatten(params)
    source_of = _renamed(init, saved)
    unused = sorted(set(source_of) - set(target))
    problems, fresh = [], []
    for path, leaf in leaves_of(params).items():
        if path not in source_of:
            if any(pattern.fullmatch(path) for pattern in may_miss):
                fresh.append(path)
                continue
            near = ", ".join(get_close_matches(path, unused, n=2)) or "none"
            problems.append(f"{path}: not there (nearest: {near})")
        elif saved[source_of[path]] != leaf:
            there = show_leaf(saved[source_of[path]])
            problems.append(f"{path}: there {there}, here {show_leaf(leaf)}")
    if problems:
        raise CheckpointError(
            f"init.source {place}",
            "; ".join(problems),
            "each parameter of the model, of its shape and dtype",
            "name what may start fresh in init.missing; rename with init.map, "
            "also what must not be loaded",
        )
    wanted = {source_of[p]: target[p] for p in target if p in source_of}
    loaded = read(jax.tree.map(_abstract, wanted))
    values = {p: loaded[source_of[p]] if p in source_of else target[p] for p in target}
    report = Report(
        place,
        tuple(sorted(set(target) - set(fresh))),
        tuple(fresh),
        tuple(source_of[path] for path in unused),
    )
    return unflatten(params, values), report


def saved_shapes(directory: Path, sharding: Any) -> dict[str, Any]:
    """Returns the state of a verified step as jax.ShapeDtypeStruct in nested dicts.

    Args:
      sharding: for every array.
    """
    return nest(
        {
            path: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)
            for path, (dtype, shape) in read_leaves(directory).items()
        }
    )


def shapes_in(step: Path, program: Any) -> Any:
    """Returns the parameters to read from a verified step, as shapes with shardings.

    They are those of the program. The size of a fitted model depends on its data, so
    its shapes are those of the step.
    """
    if "fit" not in program.model.can:
        return program.params
    whole = NamedSharding(program.mesh, PartitionSpec())
    return saved_shapes(step, whole)["params"]


def _open(init: Init) -> tuple[str, Leaves, Callable[[dict], dict]]:
    """Opens a source.

    Returns:
      Its name, its parameters, and a function that reads them: abstract -> arrays.
    """
    assert init.source is not None
    if init.source.startswith(checkpoint.PREFIX):
        directory = checkpoint.directory_of(init.source)
        opened = checkpoint.open_checkpoint(directory, init.missing)
        shapes = importing.shapes(opened)
        leaves = {path: ["float32", [*shape]] for path, shape in shapes.items()}
        name = f"{opened.file} ({opened.dtypes})"
        name += "".join(f"; {note}" for note in opened.notes)
        return name, leaves, functools.partial(importing.load, opened)
    pin = ExitStack()  # A running source must not remove the step before it is read.
    directory = pin.enter_context(reading(Path(init.source), init.checkpoint))
    part, saved = weights_of(read_leaves(directory), init.weights)

    def read(wanted: dict) -> dict:
        with pin:
            state = read_state(directory, {part: nest(wanted)}, partial=True)
        return flatten(state[part])

    return str(directory), saved, read


def weights_of(leaves: Leaves, which: str) -> tuple[str, Leaves]:
    """Chooses the weights of a checkpoint.

    Args:
      leaves: of the state that was saved.
      which: "averaged", or "trained"; without an average both mean the trained ones.

    Returns:
      The part of the state, "averaged" or "params", and its leaves by path.
    """
    parts: dict[str, Leaves] = {"averaged": {}, "params": {}}
    for path, leaf in leaves.items():
        part, _, name = path.partition("/")
        if part in parts:
            parts[part][name] = leaf
    part = "averaged" if which == "averaged" and parts["averaged"] else "params"
    return part, parts[part]


def _renamed(init: Init, saved: Leaves) -> dict[str, str]:
    """Maps the path of each parameter in the model to its path in the source."""
    source_of: dict[str, str] = {}
    used = set()
    patterns = [_regex(f"init.map[{i}]", rule[0]) for i, rule in enumerate(init.map)]
    for path in saved:
        name = path
        for i, pattern in enumerate(patterns):
            if match := pattern.fullmatch(path):
                used.add(i)
                name = _expand(match, init.map[i][1], f"init.map[{i}]")
                break
        if name in source_of:
            raise ConfigError(
                "init.map",
                f"{source_of[name]} and {path}, both given to {name}",
                "one parameter for each path",
            )
        source_of[name] = path
    for i, (wanted, _) in enumerate(init.map):
        if i not in used:
            near = ", ".join(get_close_matches(wanted, list(saved), n=2)) or "none"
            raise ConfigError(
                f"init.map[{i}]",
                f"{wanted!r}, which matches no parameter of {init.source}",
                f"a regex of a whole path (nearest: {near})",
            )
    return source_of


def _regex(field: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(field, f"{pattern!r} ({error})", "a regex") from error


def _expand(match: re.Match, replacement: str, field: str) -> str:
    try:
        return match.expand(replacement)
    except (re.error, IndexError) as error:
        found = f"{replacement!r} ({error})"
        raise ConfigError(field, found, "a replacement for its regex") from error


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
