"""Writes the metrics of a run: rows, TensorBoard, progress on the terminal, run.log.

`metrics.jsonl` has one row per step with sorted keys, and is the same bit for bit in a
repeated run. A float32 is written as the shortest decimal that reads back as the same
float32. NaN and infinity, for which JSON has no number, are the strings "NaN",
"Infinity" and "-Infinity"; `read_rows` reads them as floats. `timing.jsonl` holds wall
times, which differ from run to run.
"""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lm.config.resolve import Duration, is_time
from lm.errors import escape
from lm.host import files, storage
from lm.host.timing import clock
from lm.workdir.lines import figures, wrap


@dataclass(frozen=True)
class Log:
    """What is shown (`config.log`); rows of metrics are written at every step anyway.

    Attributes:
      every: time between two lines of the terminal and two points of TensorBoard.
      tensorboard: whether TensorBoard event files are written.
    """

    every: Duration = 10
    tensorboard: bool = True


CHANGEABLE = ("every", "tensorboard")


class Writer:
    """Writes the rows and shows the progress of a run; only process 0 does anything.

    It is a context, which restores the terminal at its end.

    Args:
      workdir: the folder of the files.
      log: the options.
      primary: whether this is process 0.
      stream: for the progress, standard output by default. A terminal gets a bar,
        anything else lines.
    """

    def __init__(
        self,
        workdir: Path,
        log: Log,
        *,
        primary: bool = True,
        stream: TextIO | None = None,
    ):
        self._workdir, self._primary = Path(workdir), primary
        self._tensorboard = log.tensorboard
        self._stream = stream or sys.stdout
        self._metrics: storage.Appender | None = None
        self._timing: storage.Appender | None = None
        self._board: _TensorBoard | None = None
        self._bar: _Bar | None = None
        self._anchor: tuple[float, int] | None = None
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=20)
        self._runlog = storage.Appender(self._workdir / "run.log") if primary else None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def start(self, step: int, *, every: int, total_steps: int) -> None:
        """Cuts both files to the rows up to `step`, and opens them to append rows.

        Call it before the first row; `note` may be called earlier.

        Args:
          step: that of the checkpoint, 0 for a new run.
          every: `log.every` in steps.
          total_steps: the last step of the run.
        """
        if not self._primary:
            return
        self._close_files()
        for name in ("metrics.jsonl", "timing.jsonl"):
            complaint = cut(self._workdir / name, step)
            if complaint:
                self.note(f"warning: {complaint}")
        self._metrics = storage.Appender(self._workdir / "metrics.jsonl")
        self._timing = storage.Appender(self._workdir / "timing.jsonl")
        self._step = self._first = step
        self._every, self._total = every, total_steps
        self._anchor = None
        self._recent.clear()
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = self._bar or _Bar(self._stream, self._total)
            self._bar.show(step, "starting")

    def row(
        self, step: int, metrics: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        """Writes the row of a step; shows it if that is due or it has evaluations.

        Args:
          step: follows the step of the last row.
          metrics: "train/...", "optim/..." and "<eval>/..." to scalars (float, int,
            numpy or jax).
          timing: of `lm.host.timing.StepTimer.lap`; may hold more.
        """
        if not self._primary:
            return
        assert self._metrics and self._timing, "start() comes before the first row"
        assert step > self._step, f"the row of step {step} follows that of {self._step}"
        self._step = step
        self._metrics.write(_json_row(step, metrics))
        self._timing.write(_json_row(step, timing))
        if self._anchor is None:  # The first step compiles, so its time is no measure.
            self._anchor = (timing["time"], step)
        else:
            self._recent.append(timing)
        self._show(step, metrics, timing)

    def note(self, message: str) -> None:
        """Shows a line and writes it to run.log; control characters are escaped."""
        message = escape(message)
        if self._primary:
            self._keep(message)
            self._print(message)

    def sync(self) -> None:
        """Makes all rows so far durable; call it before a checkpoint is committed."""
        for file in (self._metrics, self._timing, self._runlog):
            if file:
                file.sync()

    def close(self) -> None:
        """Closes all files, and the progress bar."""
        self._close_files()
        if self._bar:
            self._bar.close()
            self._bar = None
        if self._runlog:
            self._runlog.close()
            self._runlog = None

    def _close_files(self) -> None:
        for file in (self._metrics, self._timing):
            if file:
                file.close()
        if self._board:
            with suppress(Exception):
                self._board.close()
        self._metrics = self._timing = self._board = None

    def _show(self, step: int, metrics: Mapping, timing: Mapping) -> None:
        """Shows a step on the terminal, in run.log and in TensorBoard."""
        evaluations = {
            name: value
            for name, value in metrics.items()
            if not name.startswith(("train/", "optim/"))
        }
        place = f"step {step}/{self._total}"
        status = self._status(step, metrics, timing)
        if self._bar:
            self._bar.show(step, status)
        if is_time(step, self._every, self._total):
            self._keep(f"{place}  {status}")
            if not self._bar:
                self._print(f"{place}  {status}")
        elif not evaluations:
            return
        if evaluations:
            values = [f"{k} {text}" for k, text in figures(evaluations).items()]
            self._keep("  ".join([place, *values]))
            self._print(wrap([place, *values], "  "))
        speed = {f"timing/{k}": v for k, v in timing.items() if k != "time"}
        self._plot(step, {**metrics, **speed})

    def _status(self, step: int, metrics: Mapping, timing: Mapping) -> str:
        """Formats a step, such as "loss 6.5312  12.3k tokens/s  left 0:12:33"."""
        parts = []
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.4f}")
        if self._recent:
            assert self._anchor
            seconds = sum(each["step_seconds"] for each in self._recent)
            tokens = sum(each["tokens"] for each in self._recent)
            parts.append(f"{_thousands(tokens / seconds)} tokens/s")
            since, first = self._anchor
            rate = (timing["time"] - since) / (step - first)
            parts.append(f"left {clock(rate * (self._total - step))}")
        return "  ".join(parts)

    def _plot(self, step: int, values: Mapping) -> None:
        """Writes points to TensorBoard; a failure switches it off with a warning."""
        if not self._tensorboard:
            return
        try:
            self._board = self._board or _TensorBoard(
                self._workdir / "tensorboard", self._first + 1
            )
            self._board.write(step, values)
        except Exception as error:
            self._tensorboard = False
            self.note(f"warning: TensorBoard is off from here on: {error!r}")

    def _keep(self, message: str) -> None:
        """Writes a line to run.log, with the time."""
        if self._runlog:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            text = message.encode("utf-8", "backslashreplace").decode()
            self._runlog.write(f"{stamp}  {text}\n")

    def _print(self, message: str) -> None:
        """Prints a line on the terminal; continues if its reader has gone."""
        if self._bar:
            self._bar.print(message)
        else:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            text = message.encode(encoding, "backslashreplace").decode(encoding)
            try:
                print(text, file=self._stream, flush=True)
            except OSError:  # The reader has gone, as with `| head`.
                # Otherwise the flush at the exit of the process would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def cut(path: Path, step: int) -> str | None:
    """Removes the rows after `step` and a torn last line from a file of rows.

    The file is replaced as a whole or not at all.

    Returns:
      What is wrong with the rows that are left, for a warning; None if nothing is.
    """
    if files.check_regular(path) is None:
        return None if step == 0 else f"{path.name}: absent, the rows up to {step} too"
    with storage.refusing(path):
        data = storage.steady(path.read_bytes)
    lines = data.split(b"\n")[:-1]  # After the last line end is a torn row, or nothing.
    kept, last, unreadable = [], 0, 0
    for line in lines:
        at = step_of(line)
        if at is None:
            unreadable += 1
        elif at <= step:
            kept.append(line + b"\n")
            last = at
    rest = b"".join(kept)
    if rest != data:
        storage.write_bytes(path, rest)
    if unreadable:
        return f"{path.name}: {unreadable} lines that are no rows were dropped"
    if last != step:
        return f"{path.name}: the last row is of step {last}, not {step}"
    return None


def step_of(line: bytes) -> int | None:
    """Reads the step of a row; None where the line is no row."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def read_rows(path: Path) -> list[dict[str, float]]:
    """Reads the rows of metrics.jsonl or timing.jsonl, NaN and infinity as floats.

    Lines that are no rows are left out, such as a last one torn by a kill.

    Raises:
      StorageError: it is absent, or no regular file.
    """
    files.check_regular(path)
    with storage.refusing(path):
        lines = storage.steady(Path(path).read_bytes).split(b"\n")
    rows = [json.loads(line) for line in lines if step_of(line) is not None]
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def _number(value: Any) -> float:
    """Reads a value of a row; anything that is no number becomes NaN."""
    if isinstance(value, str):
        return {"Infinity": math.inf, "-Infinity": -math.inf}.get(value, math.nan)
    return value if isinstance(value, int | float) else math.nan


def plain_row(values: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Converts the values of a row to what JSON can hold, without loss."""
    return {name: _plain(value) for name, value in values.items()}


def _json_row(step: int, values: Mapping[str, Any]) -> str:
    """Formats a row as a line of JSON."""
    row = plain_row(values)
    return json.dumps({**row, "step": step}, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: Any) -> int | float | str:
    """Converts a scalar to what JSON can hold, without loss."""
    if not isinstance(value, (int, float)) or isinstance(value, np.floating):
        array = np.asarray(value)
        if array.dtype.kind in "iub":
            return int(array)
        # Python would print the float64 that a float32 becomes, with all its digits.
        wide = array.dtype == np.float64
        value = float(array) if wide else float(str(array.astype(np.float32)))
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _thousands(value: float) -> str:
    """Formats a large number, such as "12.3k"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


class _Bar:
    """Shows a progress bar on the last line of a terminal, below other lines."""

    def __init__(self, stream: TextIO, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=Console(file=stream),
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total, status="")
        self._progress.start()

    def show(self, step: int, status: str) -> None:
        self._progress.update(self._task, completed=step, status=status)

    def print(self, text: str) -> None:
        console = self._progress.console
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class _TensorBoard:
    """Writes TensorBoard event files without tensorboardX's own thread.

    That thread ends at the first failed write, after which the run would wait for it
    without end.
    """

    def __init__(self, directory: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / "events"), f".{first_step}")
        # TensorBoard drops points from this step on that a killed process has written.
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(
            Event(wall_time=time.time(), step=first_step, session_log=start)
        )
        self._file.flush()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
        ]
        summary = Summary(value=points)
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
