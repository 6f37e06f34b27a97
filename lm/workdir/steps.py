"""The steps of a workdir: found, verified, held while they are read, and read.

The functions only read and may be used on any workdir, that of a live run too.
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

# Another one of these makes other data, with which no run can go on.
FIXED = ("seed", "seq_len", "tokenizer", "data.sources", "data.pack", "data.order")
Leaves = dict[str, list]  # path -> [dtype, shape]
Which = int | Literal["latest", "best"]


def find(workdir: Path, which: Which = "latest") -> Path:
    """The directory of a committed step of any workdir, verified.

    Raises:
      CheckpointError: there is none, or a file of it is damaged.
    """
    directory, facts = _choose(workdir, which)
    _verify(directory, facts)
    return directory


def _verify(directory: Path, facts: dict[str, Any]) -> None:
    """Verifies a step, and that it is of the run in whose workdir it stands."""
    found = storage.verify(directory, **facts)
    known = identity.read(directory.parents[1])
    if known is not None:
        known.check(found, directory)


def _choose(workdir: Path, which: Which) -> tuple[Path, dict[str, Any]]:
    """The directory of a step, and what its manifest must say."""
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
    # The pointer's own facts must be those of the step: it has no checksum.
    return directory / str(step), {**best, "step": step}


@contextmanager
def reading(workdir: Path, which: Which = "latest") -> Iterator[Path]:
    """`find`, and while the block lasts the live run does not remove the step."""
    held = False
    while not held:  # The run may remove it just before it is held.
        directory, facts = _choose(workdir, which)
        with storage.holding(directory) as held:
            if held:
                _verify(directory, facts)
                yield directory


def read(directory: Path, abstract: Any) -> tuple[Any, dict]:
    """Reads a verified step; `abstract`, the result and errors as in `restore`."""
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
    """Fills in the fields that are newer than a config that was kept."""
    try:
        return configs.resolve(configs.plain(kept, "config.json"))
    except ConfigError:  # It has fields that are no more: it is compared as it is.
        return kept


def check_config(
    directory: Path, config: Config, allow_change: tuple[str, ...] = ()
) -> None:
    """Compares a config with the one that a step was saved with, if it has one.

    Raises:
      CheckpointError: they differ in a field that may not change.
    """
    file = directory / "config.json"
    if not file.exists():
        return  # Saved before configs were kept with a step.
    old = complete_config(configs.read_json(file, CheckpointError))
    refuse_changes(old, config, allow_change, f"the run of {directory}")


def refuse_changes(
    old: Config, config: Config, allow_change: tuple[str, ...], run: str
) -> list[tuple[str, Any, Any, bool]]:
    """Compares a config with that of a run; `run` names it in the error.

    Returns:
      The changes, as `configs.changes` has them.

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
    """The arrays of a verified step; with `partial`, `abstract` may leave some out.

    What is in it must be there, of the same shape and dtype: Orbax does not tell.
    """
    with orbax(partial) as ocp:
        return ocp.load_checkpointables(directory, {"state": abstract})["state"]


def read_leaves(directory: Path) -> Leaves:
    """Each leaf of the state of a step: path -> [dtype, shape]."""
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
    """What the pointer `best` says: metric, step, value; {} where there is none."""
    pointer = directory / "best"
    if not pointer.is_file():
        return {}
    like = {"metric": "", "step": 0, "value": 0.0}
    content = files.read_json(pointer, like, error=CheckpointError)
    return {name: content[name] for name in like}


def list_steps(directory: Path) -> list[int]:
    with storage.refusing(directory):
        names = [p.name for p in directory.iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def bytes_of(leaves: Leaves) -> int:
    """Counts the bytes of all leaves."""
    return sum(np.dtype(d).itemsize * math.prod(s) for d, s in leaves.values())


def leaves_of(tree: Any) -> Leaves:
    """The path, dtype and shape of each leaf, arrays or abstract."""
    return {
        path: [str(np.dtype(leaf.dtype)), list(leaf.shape)]
        for path, leaf in flatten(tree).items()
    }


def show_leaf(leaf: list | None) -> str:
    return "nothing" if leaf is None else f"{leaf[0]} {tuple(leaf[1])}"


def free_name(path: Path) -> Path:
    """Finds a name that nothing has: the path, or with .2, .3 ... at its end."""
    names = [path, *(path.with_name(f"{path.name}.{i}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


@contextmanager
def orbax(partial_load: bool = False) -> Iterator[Any]:
    """Orbax's module, within the options that we use it with."""
    from orbax.checkpoint import v1 as ocp

    # Orbax logs each error that it also raises; a refusal of ours is one line.
    logging.getLogger("absl").addFilter(_not_orbax)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial_load
    # Compressing weights costs five times the processor time and spares 7 %.
    context.array_options.saving.use_compression = False
    with context:
        yield ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
