"""Finds, verifies and reads the steps of a workdir, that of a running run too.

No function here changes a workdir.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError
from lm.host import files, storage
from lm.trees import flatten
from lm.workdir import identity

# Another value of these means other data: --allow-change does not allow it.
FIXED = (
    *("seed", "seq_len", "tokenizer"),
    *("data.sources", "data.pack", "data.order", "data.windows"),
)
Leaves = dict[str, list]  # path -> [dtype, shape]
Which = int | Literal["latest", "best"]


def find(workdir: Path, which: Which = "latest") -> Path:
    """Finds and verifies a committed step; returns its directory.

    Raises:
      CheckpointError: there is none, or a file of it is damaged.
    """
    directory, facts = _choose(workdir, which)
    _verify(directory, facts)
    return directory


def _verify(directory: Path, facts: dict[str, Any]) -> None:
    """Verifies a step, and that it belongs to the run of its workdir."""
    found = storage.verify(directory, **facts)
    known = identity.read(directory.parents[1])
    if known is not None:
        known.check(found, directory)


def _choose(workdir: Path, which: Which) -> tuple[Path, dict[str, Any]]:
    """Finds a step; returns its directory and what its manifest must hold."""
    directory = Path(workdir).absolute() / "checkpoints"
    steps = list_steps(directory) if directory.is_dir() else []
    best = read_best(directory) if which == "best" else {}
    latest = max(steps, default=None)
    named = {"best": best.get("step"), "latest": latest}
    step = named[which] if isinstance(which, str) else which
    if step not in steps:
        raise CheckpointError(
            str(directory),
            f"steps {steps}" if steps else "no checkpoint",
            f"the {which} one" if isinstance(which, str) else f"step {which}",
            "give the workdir of a run, and a step that it has kept",
        )
    # The pointer has no checksum, so its facts are compared with the manifest's.
    return directory / str(step), {**best, "step": step}


@contextmanager
def reading(workdir: Path, which: Which = "latest") -> Iterator[Path]:
    """Finds and verifies a step, which its run does not remove during the block."""
    held = False
    while not held:  # The run may remove the step just before it is locked.
        directory, facts = _choose(workdir, which)
        with storage.holding(directory) as held:
            if held:
                _verify(directory, facts)
                yield directory


def read(directory: Path, abstract: Any) -> tuple[Any, dict]:
    """Reads a verified step.

    Args:
      abstract: the state as jax.ShapeDtypeStruct leaves, with shardings.

    Returns:
      The state, of the types and shardings of `abstract`, and the host's JSON.

    Raises:
      CheckpointError: the state differs from `abstract` in a path, a shape or a dtype.
    """
    saved, wanted = read_leaves(directory), leaves_of(abstract)
    found = []
    for path in sorted({**saved, **wanted}):
        there, here = saved.get(path), wanted.get(path)
        if there != here:
            found.append(
                f"{path}: checkpoint {show_leaf(there)}, run {show_leaf(here)}"
            )
    if found:
        more = "" if len(found) <= 20 else f"; and {len(found) - 20} more"
        raise CheckpointError(
            str(directory),
            "; ".join(found[:20]) + more,
            "the state of this run",
            "continue with the config of that run, or use another --workdir",
        )
    host = files.read_json(directory / "host.json", {}, error=CheckpointError)
    return read_state(directory, abstract), host


def complete_config(kept: Config) -> Config:
    """Adds the fields that are newer than a config that was kept, with defaults."""
    try:
        return configs.resolve(configs.plain(kept, "config.json"))
    except ConfigError:  # It has fields that no longer exist.
        return kept


def check_config(
    directory: Path, config: Config, allow_change: tuple[str, ...] = ()
) -> None:
    """Compares a config with the one that is saved with a step, if there is one.

    Raises:
      CheckpointError: they differ in a field that may not change.
    """
    file = directory / "config.json"
    if not file.exists():
        return  # Older checkpoints have no config.
    old = complete_config(configs.read_json(file, CheckpointError))
    refuse_changes(old, config, allow_change, f"the run of {directory}")


def refuse_changes(
    old: Config, config: Config, allow_change: tuple[str, ...], run: str
) -> list[tuple[str, Any, Any, bool]]:
    """Refuses a config whose frozen fields are not those of a run.

    Args:
      allow_change: frozen fields that may differ.
      run: describes the run, for the error.

    Returns:
      The differences, as of `configs.changes`.

    Raises:
      CheckpointError: a frozen field differs that `allow_change` does not name.
    """
    changes = configs.changes(old, config)
    for path, was, now, changeable in changes:
        if not changeable and path not in allow_change:
            fixed = any(path == part or path.startswith(f"{part}.") for part in FIXED)
            allow = f", or --allow-change={path}, if the state keeps its shapes"
            raise CheckpointError(
                path,
                f"{now!r} in the config",
                f"{was!r}, as {run} began",
                "use another --workdir" + ("" if fixed else allow),
            )
    return changes


def read_state(directory: Path, abstract: Any, partial: bool = False) -> Any:
    """Reads the arrays of a verified step.

    Each leaf of `abstract` must be in the step with the same shape and dtype, which
    Orbax does not check.

    Args:
      abstract: jax.ShapeDtypeStruct leaves, with shardings.
      partial: whether it may lack leaves of the step.
    """
    with orbax(partial) as ocp:
        return ocp.load_checkpointables(directory, {"state": abstract})["state"]


def read_leaves(directory: Path) -> Leaves:
    """Reads the dtype and shape of each leaf of a step: path -> [dtype, shape]."""
    file = Path(directory) / "leaves.json"
    leaves = files.read_json(file, {}, error=CheckpointError)
    for path, leaf in leaves.items():
        if not (isinstance(leaf, list) and len(leaf) == 2):
            raise CheckpointError(f"{file}: {path}", repr(leaf)[:60], "[dtype, shape]")
        like = {"dtype": "", "shape": [0]}
        given = dict(zip(like, leaf))
        files.check_shape(given, like, file, CheckpointError, path)
    return leaves


def read_best(directory: Path) -> dict[str, Any]:
    """Reads the pointer `best`: metric, step, value; {} where there is none."""
    pointer = directory / "best"
    if not pointer.is_file():
        return {}
    like = {"metric": "", "step": 0, "value": 0.0}
    content = files.read_json(pointer, like, error=CheckpointError)
    return {name: content[name] for name in like}


def list_steps(directory: Path) -> list[int]:
    """Lists the committed steps of a folder `checkpoints`, in ascending order."""
    with storage.refusing(directory):
        names = [p.name for p in directory.iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def bytes_of(leaves: Leaves) -> int:
    """Counts the bytes of all leaves."""
    return sum(np.dtype(d).itemsize * math.prod(s) for d, s in leaves.values())


def leaves_of(tree: Any) -> Leaves:
    """Lists the path, dtype and shape of each leaf, an array or an abstract one."""
    return {
        path: [str(np.dtype(leaf.dtype)), list(leaf.shape)]
        for path, leaf in flatten(tree).items()
    }


def show_leaf(leaf: list | None) -> str:
    """Formats the dtype and shape of a leaf for an error."""
    return "nothing" if leaf is None else f"{leaf[0]} {tuple(leaf[1])}"


def free_name(path: Path) -> Path:
    """Finds a path that does not exist: this one, or with .2, .3 ... at its end."""
    names = [path, *(path.with_name(f"{path.name}.{i}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


@contextmanager
def orbax(partial_load: bool = False) -> Iterator[Any]:
    """Gives Orbax's module, with our options set during the block."""
    from orbax.checkpoint import v1 as ocp

    # Orbax also logs each error that it raises; a refusal must be one line.
    logging.getLogger("absl").addFilter(_not_orbax)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial_load
    # Compression takes five times the processor time and saves 7 % of the bytes.
    context.array_options.saving.use_compression = False
    with context:
        yield ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
