"""Keeps a workdir to one run, by a lock file that its owner touches every few seconds.

Only one process can create the file, in which it names itself. On the same machine the
process table shows whether the owner is alive. From another machine only a changing
modification time shows it; the clocks of two machines are never compared. The lock of a
dead owner is removed while the system's lock on the file is held, so that only one of
several processes takes it over.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from lm.errors import StorageError, WorkdirError, escape
from lm.host import files, storage

MOST = 2**16  # bytes of a lock file
# Seconds between two touches; seconds without one until the owner counts as dead.
BEAT, LIMIT = 2.0, 30.0


class Lock:
    """Holds `path` for the process, as a context.

    Args:
      path: the lock file; its directory is made.
      wait: seconds to wait for an owner that is alive, 0 to refuse at once.
      limit: seconds without a touch until an owner on another machine counts as dead.
      beat: seconds between two touches.
      note: prints a line about a lock that is taken over.

    Raises:
      WorkdirError: another process holds it; names the process, its machine and since
        when.
      StorageError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        wait: float = 0.0,
        limit: float = LIMIT,
        beat: float = BEAT,
        note: Callable[[str], None] = lambda line: None,
    ):
        self.path, self._wait, self._limit, self._beat = Path(path), wait, limit, beat
        self._note = note
        facts = {
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "host": socket.gethostname(),
            "machine": _machine(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
        }
        self._text = storage.to_json(facts)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lock")

    def __enter__(self) -> "Lock":
        with storage.refusing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            deadline = time.monotonic() + self._wait
            while not self._create():
                self._await_owner(deadline)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError, StorageError):
            seen = _look(self.path)
            if seen is not None and seen[0] == self._text:
                self.path.unlink()

    def _create(self) -> bool:
        """Creates the file; returns False where it exists."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(self._text)
        return True

    def _await_owner(self, deadline: float) -> None:
        """Waits until the file is gone or taken over; refuses at the deadline."""
        first = _look(self.path)
        seen, patience = first, time.monotonic() + self._limit
        while first and seen and seen[0] == first[0]:
            owner = _parse(first[0])
            if _is_dead(owner) or time.monotonic() > patience:
                self._take_over(first[0], owner)
                return
            alive = _is_here(owner) or seen != first
            if alive and time.monotonic() >= deadline:
                raise WorkdirError(
                    str(self.path.parent),
                    f"process {_show(owner)} at work in it",
                    "a directory that no other process uses",
                    "wait for it to end, or choose another --workdir",
                )
            time.sleep(0.1)
            seen = _look(self.path)

    def _take_over(self, text: str, owner: dict[str, Any]) -> None:
        """Removes the lock of a dead owner, unless another process was faster."""
        with suppress(FileNotFoundError), open(self.path, "rb+") as old:
            fcntl.lockf(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(old.fileno()).st_ino == os.stat(self.path).st_ino
            if same and old.read(MOST).decode(errors="replace") == text:
                self.path.unlink()
                self._note(f"taken over from process {_show(owner)}, which has ended")

    def _keep(self) -> None:
        """Touches the file; ends the process if another one has the lock."""
        while not self._done.wait(self._beat):
            try:
                seen = _look(self.path)
                if seen is None or seen[0] != self._text:
                    self._lost()
                os.utime(self.path)
            except (FileNotFoundError, StorageError):
                self._lost()
            except OSError:
                continue  # A network file system failed once; the next may succeed.

    def _lost(self) -> NoReturn:
        """Ends the process at once: another one has the lock."""
        owner = {}
        with suppress(OSError, StorageError):
            owner = _parse((_look(self.path) or ("", 0))[0])
        line = f"error[workdir] {self.path}: taken by process {_show(owner)}"
        print(escape(line), file=sys.stderr, flush=True)
        os._exit(WorkdirError.exit_code)


def of_workdir(
    workdir: Path, note: Callable[[str], None], *, primary: bool = True
) -> AbstractContextManager:
    """Makes the lock of a workdir; of several processes only the primary holds it."""
    return Lock(Path(workdir) / "lock", note=note) if primary else nullcontext()


def _look(path: Path) -> tuple[str, int] | None:
    """Reads a lock file and its modification time; None where there is none.

    Raises:
      StorageError: it is a folder, a pipe, or a link to nothing.
    """
    try:
        if files.check_regular(path) is None:
            return None
        with open(path, "rb") as file:
            text = file.read(MOST).decode(errors="replace")
        return text, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _parse(text: str) -> dict[str, Any]:
    """Parses what the owner wrote; {} where it died while writing."""
    try:
        facts = json.loads(text)
        files.check_shape(facts, {"pid": 0, "machine": ""}, "lock", StorageError)
    except (ValueError, RecursionError, StorageError):
        return {}
    return facts


def _show(owner: dict[str, Any]) -> str:
    """Formats an owner for a message."""
    if not owner:
        return "unknown"
    return f"{owner.get('pid')}@{owner.get('host')} (since {owner.get('since')})"


def _is_here(owner: dict[str, Any]) -> bool:
    """Returns whether the owner ran on this machine, since its last boot."""
    return owner.get("machine") == _machine()


def _is_dead(owner: dict[str, Any]) -> bool:
    """Returns whether the owner has certainly ended; False from another machine."""
    if not _is_here(owner):
        return False
    if not 0 < owner["pid"] < 2**31:
        return True  # No process has such a number.
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # Another process may have been given the number since.
    return _born(owner["pid"]) != owner.get("born")


def _machine() -> str:
    """Names this boot of this machine, and its namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _born(pid: int) -> str | None:
    """Reads when a process began, in the kernel's ticks; None where it is unknown.

    It is None also for a process that has ended and that its parent has not collected.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
