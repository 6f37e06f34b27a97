"""Decides whether a config and its data may continue the run of a workdir."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import CheckpointError
from lm.host import files, storage
from lm.workdir import steps
from lm.workdir.checkpoint import Checkpoint, Checkpointer

# (path of the field, old value, new value, whether it may change on resume)
Change = tuple[str, Any, Any, bool]


def begun(workdir: Path) -> bool:
    """Returns whether the run has saved a checkpoint.

    From then on it needs `init.source` no more, but for the base of an adapter.
    """
    return any(step.name.isdecimal() for step in (workdir / "checkpoints").glob("*"))


def check_config(
    config: Config, workdir: Path, allow_change: tuple[str, ...] = ()
) -> tuple[Config | None, list[Change]]:
    """Compares a config with that of the run in `workdir`, without changing a file.

    Args:
      allow_change: frozen fields that may differ.

    Returns:
      The config of the run, None for a new run; and the differences.

    Raises:
      CheckpointError: the workdir has checkpoints of a config that differs in a field
        that may not change.
    """
    file = workdir / "config.json"
    if files.check_regular(file) is None:
        return None, []
    kept = steps.complete_config(configs.read_json(file))
    if not begun(workdir):
        return kept, configs.changes(kept, config)
    run = f"the run in {workdir}"
    return kept, steps.refuse_changes(kept, config, allow_change, run)


class Opened(NamedTuple):
    """The workdir of a new run, or of one that continues.

    Attributes:
      before: the config that the workdir holds; None for a new run.
      changes: the differences of the new config from it.
      checkpointer: writes and reads its checkpoints.
      latest: the newest checkpoint, not verified yet; None where there is none.
    """

    before: Config | None
    changes: list[Change]
    checkpointer: Checkpointer
    latest: int | None


def open_workdir(
    config: Config,
    workdir: Path,
    note: Callable[[str], None],
    *,
    strict: bool = False,
    allow_change: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> Opened:
    """Opens a workdir for the run of a config, and notes what the config changes.

    If the workdir has checkpoints, the config is not written here but after one of them
    is restored (`adopt`), so that a command that is refused changes no file.

    Args:
      note: writes a line to the log.
      strict, allow_change: see `Checkpointer`.
      notes: lines to write to the log first.

    Raises:
      CheckpointError: as `check_config`.
    """
    before, changes = check_config(config, workdir, allow_change)
    for line in (*notes, *describe_changes(changes)):
        note(line)
    checkpointer = Checkpointer(
        workdir,
        configs.build(Checkpoint, config.checkpoint),
        config=config,
        allow_change=allow_change,
        note=note,
        strict=strict,
    )
    latest = checkpointer.latest()
    if latest is None:
        adopt(config, workdir, changes)
    return Opened(before, changes, checkpointer, latest)


def adopt(config: Config, workdir: Path, changes: list[Change]) -> None:
    """Writes the config into the workdir; only process 0 writes.

    If the config has changed and the run has not saved yet, its tokenizer is removed,
    so that it is trained again.
    """
    if jax.process_index() != 0:
        return
    if changes and not begun(workdir):
        storage.remove_tree(workdir / "tokenizer")
    storage.write_text(workdir / "config.json", configs.to_json(config))


def describe_changes(changes: list[Change]) -> list[str]:
    """Returns a line for the log for each change of the config."""
    return [f"changed: {path} from {old!r} to {new!r}" for path, old, new, _ in changes]


def check_data(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, resized: bool = False
) -> None:
    """Refuses to continue with other data than those of the checkpoint.

    The format of an index is part of the names of its rows. So rows of two formats are
    compared by the numbers of records, rows and tokens. An evaluation is compared only
    where its section of the config is the same.

    Args:
      saved: the identity of the checkpoint's data (`lm.data.pipeline.fingerprint`).
      now: the identity of the data now.
      resized: whether the batch size may differ; the order of examples stays.

    Raises:
      CheckpointError: names the part that differs.
    """
    if saved.get("format") != now.get("format"):
        saved, now = _unnamed(saved), _unnamed(now)
    for name in {*saved.get("evals", {})} & {*now.get("evals", {})}:
        old, new = saved["evals"][name], now["evals"][name]
        if old["section"] == new["section"] and old["rows"] != new["rows"]:
            raise CheckpointError(
                f"data fingerprint: evals.{name}",
                f"{new['rows']}",
                f"{old['rows']}, as in the checkpoint",
                "restore the files of the evaluation, or use another --workdir",
            )
    saved, now = (dict(identity) | {"evals": None} for identity in (saved, now))
    for part in {**saved, **now}:
        differs = saved.get(part) != now.get(part)
        if differs and not (resized and part == "batch_size"):
            raise CheckpointError(
                f"data fingerprint: {part}",
                f"{now.get(part)}",
                f"{saved.get(part)}, as in the checkpoint",
                "restore the files of the run, or use another --workdir"
                if part != "sorted"
                else "a run that began without sorted rows has data.buckets=1",
            )


def _unnamed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Copies an identity without the names that depend on the format of an index."""
    counts = ("records", "skipped", "rows", "tokens")
    rows = [{key: row.get(key) for key in counts} for row in identity.get("rows", ())]
    left_out = ("format", "evals")
    return {k: v for k, v in identity.items() if k not in left_out} | {"rows": rows}


def complete(workdir: Path, step: int | None, total: int) -> bool:
    """Returns whether a run is finished: its last step is intact and evaluated.

    Process 0 looks, and all processes get its answer.

    Args:
      step: the newest checkpoint, not verified yet; None where there is none.
      total: the last step of the config.
    """
    if step is None or step < total:
        return False
    found = False
    if jax.process_index() == 0:
        with suppress(CheckpointError):  # The restore that follows reports damage.
            file = steps.find(workdir, step) / "host.json"
            # A checkpoint that precedes its evaluations keeps the row of its step.
            found = "row" not in files.read_json(file, {}, error=CheckpointError)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        found = bool(multihost_utils.broadcast_one_to_all(np.int32(found)))
    return found
