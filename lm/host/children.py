"""Runs commands as processes of their own, so that the end of one ends no other."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from lm.errors import escape
from lm.host import storage

PAUSE = 0.1  # seconds between two looks at the processes
MOST = 2**16  # bytes of an output that are looked through for its last line


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
      key: as given to `start`.
      code: its exit code; negative: the number of the signal that killed it.
      seconds: how long it ran.
      said: its error, or else its last line.
    """

    key: str
    code: int
    seconds: float
    said: str


class _Child(NamedTuple):
    process: subprocess.Popen
    output: Path
    began: float
    size: int  # bytes of the output of earlier processes


class Children:
    """Starts processes, and passes on the signals that should end this one.

    It is a context of the main thread. The first SIGTERM or Ctrl-C is passed on to
    every process, which may save its work; the next one kills them all. No process
    outlives the block.

    Attributes:
      signal: the first signal that came; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._came = self._passed = 0
        self._running: dict[str, _Child] = {}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Children":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running and self.signal is None:  # something failed here
            self._note(signal.SIGTERM, None)
        while self._running:
            self.ended()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def running(self) -> tuple[str, ...]:
        """Returns the keys of the processes that run, the oldest first."""
        return tuple(self._running)

    def start(self, key: str, command: Sequence[str], output: Path) -> None:
        """Starts a process, whose standard output and error are appended to a file.

        Raises:
          StorageError: the file cannot be written.
        """
        # `lm` is found as it is here, also from another folder.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environ = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with storage.refusing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            with open(output, "ab") as file:
                size = file.tell()
                # In a session of its own, as Ctrl-C would reach it twice otherwise.
                process = subprocess.Popen(
                    command,
                    env=os.environ | environ,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
        self._running[key] = _Child(process, output, time.monotonic(), size)

    def ended(self) -> list[Ended]:
        """Waits a moment; returns the processes that have ended since the last call."""
        time.sleep(PAUSE)
        if self._came > self._passed:
            first, self._passed = not self._passed, self._came
            for child in self._running.values():
                number = self.signal if first else signal.SIGKILL
                child.process.send_signal(number or signal.SIGTERM)
        found = []
        for key, child in [*self._running.items()]:
            code = child.process.poll()
            if code is not None:
                del self._running[key]
                seconds = time.monotonic() - child.began
                said = last_line(child.output, child.size)
                found.append(Ended(key, code, seconds, said))
        return found

    def seconds(self, key: str) -> float:
        """Returns how long a process has been running."""
        return time.monotonic() - self._running[key].began

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        self._came += 1


def last_line(output: Path, since: int = 0) -> str:
    """Reads the last line of an output, or its last refusal if there is one.

    Args:
      since: the bytes before are of other processes.
    """
    with storage.refusing(output), open(output, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(since, end - MOST))
        text = escape(file.read(MOST).decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith("error[")]
    return (refusals or lines or [""])[-1]
