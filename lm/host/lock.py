"""One workdir, one run: a lock file whose owner shows that it lives.

The lock is a file that only one process can create. It names its owner, who touches it
every few seconds. On the owner's machine the process table tells whether the owner
lives; from elsewhere only a file that changes does, and no clock is compared with
another's. A lock is taken over by replacing the file while holding the system's lock on
the old one, so of several that find a dead owner one wins.
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

MOST = 2**16  # bytes of a lock
BEAT, LIMIT = 2.0, 30.0  # seconds between two touches; without one, the owner is dead


class Lock:
    """Holds `path` for the process, as a context.

    Args:
      path: the lock file; its directory is made.
      wait: seconds to wait for an owner that lives, 0 to refuse at once.
      limit: seconds without a sign from an owner on another machine, until it is dead.
      note: takes a line about a lock that is taken over.

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
        self._thread = threading.Thread(target=self._live, daemon=True, name="lock")

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
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(self._text)
        return True

    def _await_owner(self, deadline: float) -> None:
        """Returns when the file is gone, or taken over; refuses at the deadline."""
        first = _look(self.path)
        seen, patience = first, time.monotonic() + self._limit
        while first and seen and seen[0] == first[0]:
            owner = _parse(first[0])
            if _is_dead(owner) or time.monotonic() > patience:
                self._take_over(first[0], owner)
                return
            lives = _is_here(owner) or seen != first
            if lives and time.monotonic() >= deadline:
                raise WorkdirError(
                    str(self.path.parent),
                    f"process {_show(owner)} at work in it",
                    "a directory that no other process uses",
                    "wait for it to end, or choose another --workdir",
                )
            time.sleep(0.1)
            seen = _look(self.path)

    def _take_over(self, text: str, owner: dict[str, Any]) -> None:
        """Removes the lock of a dead owner, unless another was faster."""
        with suppress(FileNotFoundError), open(self.path, "rb+") as old:
            fcntl.lockf(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(old.fileno()).st_ino == os.stat(self.path).st_ino
            if same and old.read(MOST).decode(errors="replace") == text:
                self.path.unlink()
                self._note(f"taken over from process {_show(owner)}, which has ended")

    def _live(self) -> None:
        """Touches the file; ends the process if it is no longer its own."""
        while not self._done.wait(self._beat):
            try:
                seen = _look(self.path)
                if seen is None or seen[0] != self._text:
                    self._lost()
                os.utime(self.path)
            except (FileNotFoundError, StorageError):
                self._lost()
            except OSError:
                continue  # A file system that stumbles; the next beat may succeed.

    def _lost(self) -> NoReturn:
        owner = {}
        with suppress(OSError, StorageError):
            owner = _parse((_look(self.path) or ("", 0))[0])
        line = f"error[workdir] {self.path}: taken by process {_show(owner)}"
        print(escape(line), file=sys.stderr, flush=True)
        os._exit(WorkdirError.exit_code)


def of_workdir(
    workdir: Path, note: Callable[[str], None], *, primary: bool = True
) -> AbstractContextManager:
    """The lock of a run's directory; of several processes only the first holds it."""
    return Lock(Path(workdir) / "lock", note=note) if primary else nullcontext()


def _look(path: Path) -> tuple[str, int] | None:
    """Reads a lock and when it was touched; None where there is none.

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
    """The owner's facts; none where the owner died while writing them."""
    try:
        facts = json.loads(text)
        files.check_shape(facts, {"pid": 0, "machine": ""}, "lock", StorageError)
    except (ValueError, RecursionError, StorageError):
        return {}
    return facts


def _show(owner: dict[str, Any]) -> str:
    if not owner:
        return "unknown"
    return f"{owner.get('pid')}@{owner.get('host')} (since {owner.get('since')})"


def _is_here(owner: dict[str, Any]) -> bool:
    return owner.get("machine") == _machine()


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner certainly has ended: it was on this machine and is not."""
    if not _is_here(owner):
        return False
    if not 0 < owner["pid"] < 2**31:
        return True  # Nobody has such a number.
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _born(owner["pid"]) != owner.get(
        "born"
    )  # The number may be another's by now.


def _machine() -> str:
    """Where process numbers mean the same: a boot of a machine, and its namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where this is not told.

    A process that has ended and is not yet collected by its parent has no birth.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
