"""Checkpoints. Orbax writes the arrays; the manifest and the commit are ours.

`checkpoints/<step>/` holds `state` (step, params, opt_state), `host.json` (what the
host knows beside the arrays), `leaves.json` (each leaf's path, dtype and shape) and
MANIFEST.json. It is written as `<step>.partial` and renamed when all of it is durable.
`checkpoints/best` names the best step. A run owns its workdir through `Checkpointer`;
the functions only read and may be used on any workdir, that of a live run too.
"""

import errno
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lm.config.resolve import Duration
from lm.errors import CheckpointError, Refusal
from lm.host import storage, watch
from lm.trees import flatten

BOUNDS = {"keep_last": "[1, inf)", "keep_every": "[1, inf)"}
CHANGEABLE = ("every", "keep_last", "keep_every", "best", "best_mode")

Leaves = dict[str, list]  # path -> [dtype, shape]
Which = int | Literal["latest", "best"]


@dataclass(frozen=True)
class Checkpoint:
    """When to save and what to keep (`config.checkpoint`).

    A step is kept while it is among the last `keep_last`, a multiple of `keep_every`,
    or the best by the metric `best`, "<eval>/<metric>".
    """

    every: Duration = "10%"
    keep_last: int = 2
    keep_every: int | None = None
    best: str | None = None
    best_mode: Literal["min", "max"] = "min"


@dataclass(frozen=True)
class Init:
    """Weights to start from (`config.init`).

    `source` is the workdir of another run and `checkpoint` its step, "latest" or
    "best". `map` rewrites the paths of its parameters: of the (regex, replacement)
    pairs, the first whose regex matches a whole path. `missing` are regexes of the
    parameters that may start fresh.
    """

    source: str | None = None
    checkpoint: int | Literal["latest", "best"] = "latest"
    map: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()


class Checkpointer:
    """Saves and restores the state of the one run that owns `workdir`.

    In a run of several processes each of them makes one and calls each method at the
    same place; process 0 alone commits, removes and renames.

    Args:
      workdir: the run's directory; what an interrupted save left there is removed.
      policy: when to save and what to keep.
      run: the run's name, written into each manifest.
      note: takes a line of warning.
      strict: refuse a damaged step rather than fall back to an older one.
      limit: seconds to wait for the other processes.
    """

    def __init__(
        self,
        workdir: Path,
        policy: Checkpoint,
        *,
        run: str = "",
        note: Callable[[str], None] = print,
        strict: bool = False,
        limit: float = 600,
    ):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.policy, self.run, self.note, self.strict = policy, run, note, strict
        self.limit = limit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if jax.process_index() == 0:
            with storage.refusing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._point_to_best()
        watch.barrier(
            "start", limit
        )  # Before that, no process looks into the directory.

    def steps(self) -> list[int]:
        """The committed steps, in ascending order."""
        return _steps(self.directory)

    def latest(self) -> int | None:
        """The newest committed step, not yet verified; None where there is none."""
        return max(self.steps(), default=None)

    def check_room(self, abstract: Any) -> None:
        """Refuses to start where not even one checkpoint has room.

        Raises:
          StorageError: names what is needed and what is free.
        """
        need = _bytes(leaves_of(abstract))
        free = shutil.disk_usage(self.directory).free
        if free < need and not self._spare():
            error = OSError(errno.ENOSPC, "no room for a checkpoint")
            raise storage.refusal(error, self.directory, need)

    def save(
        self,
        step: int,
        state: Any,
        host: Mapping[str, Any],
        value: float | None = None,
    ) -> None:
        """Saves in the background; returns when the arrays are copied to the host.

        So the buffers of `state` may be donated at once. A step that is committed
        already is left as it is: the state of a step is a function of the config.

        Args:
          step: the step of `state`.
          state: any pytree of arrays.
          host: what else the run needs to go on, as JSON.
          value: the metric `policy.best` where it was measured at this step; evaluate
            before you save.

        Raises:
          StorageError: this save cannot be written, or the one before could not be.
        """
        self.wait()
        if step in self.steps():
            return
        storage.crash_point("save-start")
        leaves = leaves_of(state)
        files = {"host.json": dict(host), "leaves.json": leaves}
        texts = {name: storage.to_json(value) for name, value in files.items()}
        finite = value is not None and math.isfinite(value)
        facts = {
            "step": step,
            "run": self.run,
            "metric": self.policy.best if finite else None,
            "value": float(value) if finite else None,
        }
        need = _bytes(leaves)
        self._make_room(need)
        partial = self.directory / f"{step}.partial"
        with self._cleaning(), storage.refusing(partial, need), _orbax() as ocp:
            response = ocp.save_checkpointables_async(partial, {"state": state})
        storage.crash_point("save-copied")
        self._pending = self._thread.submit(
            self._finish, response, partial, need, texts, facts
        )

    def wait(self) -> None:
        """Waits until the last save is committed, by every process.

        Raises:
          StorageError: it could not be written. The next save is not affected.
          PeerError: another process did not come within the limit.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            watch.barrier("commit", self.limit)

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict]:
        """Reads the newest intact step, or `step`, into the shardings of `abstract`.

        Newer steps that are damaged are renamed `<step>.damaged` and noted, once an
        intact one is found.

        Args:
          abstract: the state as jax.ShapeDtypeStruct leaves, with shardings; or what
            makes it of the step's directory.
          step: this step and no other.

        Returns:
          The state, of the types and shardings of `abstract`, and the host's JSON.

        Raises:
          CheckpointError: none is intact (or with `strict` one is not), or the state
            differs from `abstract` in a path, a shape or a dtype.
        """
        self.wait()
        chosen, error = -1, None
        if jax.process_index() == 0:
            try:
                chosen = self._newest_intact(step)
            except Refusal as refused:
                error = refused
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen < 0:
            raise error or CheckpointError(
                str(self.directory), "no intact step", "one", "see process 0"
            )
        directory = self.directory / str(chosen)
        return read(directory, abstract(directory) if callable(abstract) else abstract)

    def drop_after(self, step: int) -> None:
        """Removes the steps after `step`, since the run goes back behind them."""
        self.wait()
        if jax.process_index() == 0:
            for later in [s for s in self.steps() if s > step]:
                storage.remove_tree(self.directory / str(later))
            self._point_to_best()
        watch.barrier("dropped steps", self.limit)

    def close(self) -> None:
        """Waits for the last save and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """After a failure a save comes to its end, if it needs no other process."""
        self._thread.shutdown(wait=kind is None or jax.process_count() == 1)

    def _newest_intact(self, step: int | None) -> int:
        damage: dict[int, CheckpointError] = {}
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                storage.verify(self.directory / str(candidate), step=candidate)
                break
            except CheckpointError as error:
                if self.strict:
                    raise
                damage[candidate] = error
        else:
            # Nothing is renamed here: a second attempt must find the same steps, and
            # not an empty directory that looks like a run to be started.
            found = "; ".join(f"step {s}: {e}" for s, e in damage.items())
            raise CheckpointError(
                str(self.directory),
                found or "no step",
                "an intact checkpoint",
                "restore the files, or start again in another --workdir",
            )
        for bad, error in damage.items():
            aside = _free(self.directory / f"{bad}.damaged")
            with storage.refusing(aside):
                (self.directory / str(bad)).rename(aside)
                storage.sync_path(self.directory)
            self.note(
                f"warning: checkpoint {bad} is damaged ({error}); "
                f"kept as {aside.name}, continuing from {candidate}"
            )
        self._point_to_best()
        return candidate

    def _finish(
        self, response: Any, partial: Path, need: int, texts: dict, facts: dict
    ) -> None:
        """The rest of a save, in the background thread."""
        with self._cleaning(), storage.refusing(partial, need):
            response.result()  # When it is done here, each process has written.
            if jax.process_index() != 0:
                return
            storage.crash_point("save-arrays")
            for name, text in texts.items():
                storage.write_text(partial / name, text)
            storage.commit(partial, self.directory / str(facts["step"]), **facts)
            self._point_to_best()
            storage.crash_point("save-pointed")
            self._retain()

    def _retain(self) -> None:
        for step in self._spare(self.policy.keep_last):
            self._remove(step)

    def _spare(self, keep_last: int = 1) -> list[int]:
        """The steps that may go, the oldest first, if `keep_last` of the last stay."""
        steps, every = self.steps(), self.policy.keep_every
        kept = {*steps[-keep_last:], _best(self.directory).get("step")}
        return [s for s in steps if s not in kept and not (every and s % every == 0)]

    def _remove(self, step: int) -> None:
        """Removes a step, unless somebody is reading it: then the next save does."""
        directory = self.directory / str(step)
        with storage.holding(directory, alone=True) as held:
            if held:
                storage.remove_tree(directory)

    def _make_room(self, need: int) -> None:
        """Removes the oldest steps early, if the disk has no room for another."""
        if jax.process_index() != 0:
            return
        for step in self._spare():
            if shutil.disk_usage(self.directory).free >= 1.1 * need:
                return
            self.note(
                f"warning: no room for {need:,} bytes; removing checkpoint {step}"
            )
            self._remove(step)

    def _point_to_best(self) -> None:
        """Writes `best` anew from the values in the manifests of the steps on disk.

        So the pointer is right after any crash; the best step is never removed.
        """
        if self.policy.best is None:
            return
        values = {}
        for step in self.steps():
            with suppress(CheckpointError):  # restore tells of damage
                facts = storage.read_manifest(self.directory / str(step))
                if facts["metric"] == self.policy.best:
                    values[step] = facts["value"]
        pointer = self.directory / "best"
        if not values:
            with storage.refusing(pointer):
                pointer.unlink(missing_ok=True)
            return
        sign = 1 if self.policy.best_mode == "min" else -1
        step = min(values, key=lambda s: (sign * values[s], s))
        content = {"metric": self.policy.best, "step": step, "value": values[step]}
        text = storage.to_json(content)
        if not pointer.is_file() or pointer.read_bytes() != text.encode():
            storage.write_text(pointer, text)

    def _sweep(self) -> None:
        """Removes what an interrupted save or removal has left."""
        for path in sorted(self.directory.iterdir()):
            if re.fullmatch(r"\d+\.(partial.*|removed)", path.name):
                storage.remove_tree(path)

    @contextmanager
    def _cleaning(self) -> Iterator[None]:
        """Sweeps after a failure, so that the next save finds its place free."""
        try:
            yield
        except BaseException:
            if jax.process_index() == 0:
                with suppress(Exception):
                    self._sweep()
            raise


def find(workdir: Path, which: Which = "latest") -> Path:
    """The directory of a committed step of any workdir, verified.

    Raises:
      CheckpointError: there is none, or a file of it is damaged.
    """
    directory, facts = _choose(workdir, which)
    storage.verify(directory, **facts)
    return directory


def _choose(workdir: Path, which: Which) -> tuple[Path, dict[str, Any]]:
    """The directory of a step, and what its manifest must say."""
    directory = Path(workdir).absolute() / "checkpoints"
    steps = _steps(directory) if directory.is_dir() else []
    best = _best(directory) if which == "best" else {}
    latest = max(steps, default=None)
    step = {"best": best.get("step"), "latest": latest}.get(which, which)
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
                storage.verify(directory, **facts)
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
    host = json.loads((directory / "host.json").read_text())
    return read_state(directory, abstract), host


def read_state(directory: Path, abstract: Any, partial: bool = False) -> Any:
    """The arrays of a verified step; with `partial`, `abstract` may leave some out.

    What is in it must be there, of the same shape and dtype: Orbax does not tell.
    """
    with _orbax(partial) as ocp:
        return ocp.load_checkpointables(directory, {"state": abstract})["state"]


def read_leaves(directory: Path) -> Leaves:
    """Each leaf of the state of a step: path -> [dtype, shape]."""
    return json.loads((Path(directory) / "leaves.json").read_text())


def _best(directory: Path) -> dict[str, Any]:
    """What the pointer `best` says: metric, step, value; {} where there is none."""
    pointer = directory / "best"
    if not pointer.is_file():
        return {}
    try:
        content = json.loads(pointer.read_bytes())
        return {name: content[name] for name in ("metric", "step", "value")}
    except (ValueError, KeyError, TypeError) as error:
        found, expected = "other bytes", "JSON with metric, step and value"
        raise CheckpointError(str(pointer), found, expected, "remove it") from error


def _steps(directory: Path) -> list[int]:
    with storage.refusing(directory):
        names = [p.name for p in directory.iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _bytes(leaves: Leaves) -> int:
    return sum(np.dtype(d).itemsize * math.prod(s) for d, s in leaves.values())


def leaves_of(tree: Any) -> Leaves:
    """The path, dtype and shape of each leaf, arrays or abstract."""
    return {
        path: [str(np.dtype(leaf.dtype)), list(leaf.shape)]
        for path, leaf in flatten(tree).items()
    }


def show_leaf(leaf: list | None) -> str:
    return "nothing" if leaf is None else f"{leaf[0]} {tuple(leaf[1])}"


def _free(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}.{i}") for i in range(2, 1000))]
    return next(name for name in names if not name.exists())


@contextmanager
def _orbax(partial_load: bool = False) -> Iterator[Any]:
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
