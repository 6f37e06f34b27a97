"""Saves and restores checkpoints; Orbax writes the arrays, we the manifest.

`checkpoints/<step>/` holds `state` (step, params, opt_state, carried, averaged),
`host.json` (what the run needs beside the arrays), `leaves.json` (path, dtype and shape
of each leaf), `config.json` and MANIFEST.json, which has the identity of the run and
the hash of the rows of metrics so far. It is written as `<step>.partial` and renamed
when all of it is durable. `checkpoints/best` names the best step. `Checkpointer` is for
the one run that owns a workdir; the functions of `steps.py` read any workdir.
"""

import errno
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

from lm.config import resolve as configs
from lm.config.resolve import Config, Duration
from lm.errors import CheckpointError, Refusal
from lm.host import storage, watch
from lm.workdir import identity, rows, steps
from lm.workdir.steps import Leaves as Leaves
from lm.workdir.steps import Which as Which
from lm.workdir.steps import find as find
from lm.workdir.steps import leaves_of as leaves_of
from lm.workdir.steps import orbax as orbax
from lm.workdir.steps import read as read
from lm.workdir.steps import read_leaves as read_leaves
from lm.workdir.steps import read_state as read_state
from lm.workdir.steps import reading as reading
from lm.workdir.steps import show_leaf as show_leaf

BOUNDS = {"keep_last": "[1, inf)", "keep_every": "[1, inf)"}
CHANGEABLE = ("every", "keep_last", "keep_every", "best", "best_mode")


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
    parameters that may start fresh. `weights` are "averaged", where the run keeps an
    average (`optim.ema`), or "trained".
    """

    source: str | None = None
    checkpoint: int | Literal["latest", "best"] = "latest"
    map: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    weights: Literal["averaged", "trained"] = "averaged"


class Checkpointer:
    """Saves and restores the state of the one run that owns `workdir`.

    Each process of a run makes one and calls each method at the same places; only
    process 0 commits, removes and renames.

    Args:
      workdir: the run's directory; remains of an interrupted save are removed.
      policy: when to save and what to keep.
      config: of the run, saved with each step. Its frozen fields must be those of the
        step that is restored. None: none is saved or compared.
      allow_change: frozen fields that may differ.
      note: prints a warning.
      strict: whether to refuse a damaged step instead of restoring an older one.
      limit: seconds to wait for the other processes.
    """

    def __init__(
        self,
        workdir: Path,
        policy: Checkpoint,
        *,
        config: Config | None = None,
        allow_change: tuple[str, ...] = (),
        note: Callable[[str], None] = print,
        strict: bool = False,
        limit: float = 600,
    ):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.policy, self.note, self.strict = policy, note, strict
        self.config, self.allow_change = config, allow_change
        self._rows = rows.Digest(self.directory.with_name("metrics.jsonl"))
        self.limit = limit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if jax.process_index() == 0:
            with storage.refusing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            self.identity = identity.adopt(self.directory.parent)
            self._sweep()
            self._point_to_best()
        # Until here only process 0 may look into the directory.
        watch.barrier("start", limit)

    def steps(self) -> list[int]:
        """Lists the committed steps in ascending order."""
        return steps.list_steps(self.directory)

    def latest(self) -> int | None:
        """Returns the newest committed step, not verified; None where there is none."""
        return max(self.steps(), default=None)

    def check_room(self, abstract: Any) -> None:
        """Refuses to start where the disk has no room for a checkpoint.

        Args:
          abstract: the state, arrays or jax.ShapeDtypeStruct.

        Raises:
          StorageError: names the bytes that are needed and those that are free.
        """
        need = steps.bytes_of(leaves_of(abstract))
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

        It first waits for the previous save. So a kill loses at most the steps since
        the last save, and those that are made while a save is being written. The
        buffers of `state` may be donated at once. A step that is committed already is
        not written again: the state of a step is a function of the config.

        Args:
          step: the step of `state`.
          state: any pytree of arrays.
          host: what the run needs to continue beside the arrays, as JSON.
          value: the metric `policy.best`, if it was measured at this step.

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
        if self.config is not None:
            texts["config.json"] = configs.to_json(self.config)
        number = value if value is not None and math.isfinite(value) else None
        primary = jax.process_index() == 0
        facts = {
            "step": step,
            "run": self.identity.run if primary else "",
            "rows": self._rows.facts() if primary else None,
            "metric": None if number is None else self.policy.best,
            "value": None if number is None else float(number),
        }
        need = steps.bytes_of(leaves)
        self._make_room(need)
        partial = self.directory / f"{step}.partial"
        with self._cleaning(), storage.refusing(partial, need), orbax() as ocp:
            response = ocp.save_checkpointables_async(partial, {"state": state})
        storage.crash_point("save-copied")
        self._pending = self._thread.submit(
            self._finish, response, partial, need, texts, facts
        )

    def wait(self) -> None:
        """Waits until the last save is committed; every process calls it.

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

        Newer steps that are damaged are renamed `<step>.damaged`, with a warning, but
        only where an intact one is found.

        Args:
          abstract: the state as jax.ShapeDtypeStruct leaves, with shardings; or a
            function from the step's directory to it.
          step: restores this step and no other.

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
        place = self.directory / str(chosen)
        if self.config is not None:
            steps.check_config(place, self.config, self.allow_change)
        return read(place, abstract(place) if callable(abstract) else abstract)

    def drop_after(self, step: int) -> None:
        """Removes the steps after `step`, to which the run goes back."""
        self.wait()
        if jax.process_index() == 0:
            for later in [s for s in self.steps() if s > step]:
                storage.remove_tree(self.directory / str(later))
            self._point_to_best()
        self._rows.reset()
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
        """Finishes a save that is running; after a failure only in a single process."""
        self._thread.shutdown(wait=kind is None or jax.process_count() == 1)

    def _newest_intact(self, step: int | None) -> int:
        """Verifies steps from the newest one on; renames the damaged ones."""
        damage: dict[int, CheckpointError] = {}
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                place = self.directory / str(candidate)
                facts = storage.verify(place, step=candidate)
                self.identity.check(facts, place)
                break
            except CheckpointError as error:
                if self.strict:
                    raise
                damage[candidate] = error
        else:
            # No step is renamed here: otherwise a second attempt would find an empty
            # directory, and start a new run.
            found = "; ".join(f"step {s}: {e}" for s, e in damage.items())
            raise CheckpointError(
                str(self.directory),
                found or "no step",
                "an intact checkpoint",
                "restore the files, or start again in another --workdir",
            )
        for bad, reason in damage.items():
            aside = steps.free_name(self.directory / f"{bad}.damaged")
            with storage.refusing(aside):
                (self.directory / str(bad)).rename(aside)
                storage.sync_path(self.directory)
            self.note(
                f"warning: checkpoint {bad} is damaged ({reason}); "
                f"kept as {aside.name}, continuing from {candidate}"
            )
        wrong = rows.complaint(self._rows.path, facts.get("rows"))
        if wrong:
            self.note(f"warning: {wrong}")
        self._point_to_best()
        return candidate

    def _finish(
        self, response: Any, partial: Path, need: int, texts: dict, facts: dict
    ) -> None:
        """Completes a save in the background thread."""
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
        """Removes the steps that the policy does not keep."""
        for step in self._spare(self.policy.keep_last):
            self._remove(step)

    def _spare(self, keep_last: int = 1) -> list[int]:
        """Lists the steps that may be removed, the oldest first.

        The best one, each multiple of `keep_every` and the last `keep_last` are kept.
        """
        found, every = self.steps(), self.policy.keep_every
        kept = {*found[-keep_last:], steps.read_best(self.directory).get("step")}
        return [s for s in found if s not in kept and not (every and s % every == 0)]

    def _remove(self, step: int) -> None:
        """Removes a step; one that is being read is left to the next save."""
        directory = self.directory / str(step)
        with storage.holding(directory, alone=True) as held:
            if held:
                storage.remove_tree(directory)

    def _make_room(self, need: int) -> None:
        """Removes the oldest steps early if the disk has no room for a new one."""
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
        """Writes `best` from the values in the manifests of all steps.

        So it is right after any crash, and the best step is never removed.
        """
        if self.policy.best is None:
            return
        values = {}
        for step in self.steps():
            with suppress(CheckpointError):  # The restore reports damage.
                place = self.directory / str(step)
                facts = storage.read_manifest(place)
                self.identity.check(facts, place)
                if facts.get("metric") == self.policy.best:
                    values[step] = float(facts["value"])
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
        """Removes what an interrupted save or removal left behind."""
        for path in sorted(self.directory.iterdir()):
            if re.fullmatch(r"\d+\.(partial.*|removed)", path.name):
                storage.remove_tree(path)

    @contextmanager
    def _cleaning(self) -> Iterator[None]:
        """Sweeps after a failure in the block, so that the next save can be made."""
        try:
            yield
        except BaseException:
            if jax.process_index() == 0:
                with suppress(Exception):
                    self._sweep()
            raise
