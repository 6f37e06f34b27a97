"""Writes the files that must survive a crash, and verifies them.

A file is written under a temporary name beside its own, synced and renamed, so that a
reader sees either the old bytes or the new ones. A directory is committed in the same
way, with a MANIFEST.json of the size and the SHA-256 of each file. Each path has one
writer. Operations in which a network file system fails for a moment are repeated a few
times. A failed fsync is not repeated: the system may have dropped the bytes, so they
are written again.

`LM_CRASHPOINT=name:k` kills the process when it passes a named crash point for the k-th
time; `name:k:SIGTERM` sends it another signal, and `name:k:stall` makes it wait there.
The tests in tests/faults use it.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lm.errors import CheckpointError, Refusal, StorageError

MANIFEST = "MANIFEST.json"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a full disk
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}
PAUSES = (0.05, 0.2, 0.8, 2.0)  # seconds before each further attempt
T = TypeVar("T")
_passages: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kills the process if LM_CRASHPOINT names this point and this passage."""
    wanted, k, how, *_ = [*os.environ.get("LM_CRASHPOINT", "").split(":"), "", ""]
    if wanted == name:
        _passages[name] += 1
        if _passages[name] == int(k or 1) and how == "stall":
            time.sleep(3600)
        elif _passages[name] == int(k or 1):
            os.kill(os.getpid(), signal.Signals[how or "SIGKILL"])


def refusal(error: OSError, path: Path, need: int | None = None) -> StorageError:
    """Makes the refusal for an error of the system at `path`.

    Args:
      need: the bytes that were to be written, if they are known.
    """
    place, found = Path(path), error.strerror or str(error)
    if error.errno in FULL:
        room = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
        needed = "" if need is None else f"need {need:,} bytes, "
        return StorageError(
            str(path),
            f"{found.lower()} ({needed}free {shutil.disk_usage(room).free:,} bytes)",
            "room to write",
            "free some space, or write elsewhere (--workdir, --output)",
        )
    return StorageError(
        str(path),
        found.lower(),
        "a place that can be read and written",
        "check the path and its permissions",
    )


@contextmanager
def refusing(path: Path, need: int | None = None) -> Iterator[None]:
    """Turns errors of the system in the block into a StorageError that names `path`.

    TensorStore raises exceptions of its own, with the number of the error in the text.
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, path, need) from error
    except Exception as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        cause = OSError(int(number[1]), os.strerror(int(number[1])))
        raise refusal(cause, path, need) from error


def steady(act: Callable[..., T], *arguments: Any) -> T:
    """Returns `act(*arguments)`, which is repeated after an error that is transient."""
    for pause in PAUSES:
        try:
            return act(*arguments)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return act(*arguments)


def rename(old: Path, new: Path) -> None:
    """Renames a path, also where a network file system reports a success as failed."""
    try:
        steady(os.rename, old, new)
    except FileNotFoundError:
        if os.path.lexists(old) or not os.path.lexists(new):
            raise


def check_directory(path: Path) -> None:
    """Checks that a directory can be written or made, without changing anything.

    Raises:
      StorageError: a parent is a file or cannot be written; names it.
    """
    full = Path(path).absolute()
    with refusing(path):
        there = next(place for place in (full, *full.parents) if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is not a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{there} is not writable")


def check_regular(path: Path, error: type[Refusal] = StorageError) -> int | None:
    """Returns the size of a regular file; None where there is nothing.

    Links are followed.

    Raises:
      Refusal: of class `error`: it is a folder, a pipe, a device or a link to nothing.
      StorageError: the system cannot look at it.
    """
    with refusing(path):
        try:
            facts = steady(os.stat, path)
        except FileNotFoundError:
            if not os.path.islink(path):
                return None
            raise error(
                str(path), "a link to nothing", "a regular file", "remove the link"
            ) from None
    if stat.S_ISREG(facts.st_mode):
        return facts.st_size
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    found = next((text for holds, text in kinds.items() if holds(facts.st_mode)), None)
    raise error(str(path), found or "a device", "a regular file", "remove it")


def sync_path(path: Path) -> None:
    """Waits until the bytes of a file or the entries of a directory are on the disk."""
    handle = steady(os.open, path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Syncs a file; after a transient error its bytes are written again."""
    try:
        sync_path(path)
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise
        write_bytes(path, steady(Path(path).read_bytes))


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`, as a whole or not at all.

    Missing parents are made.

    Raises:
      StorageError: the disk is full, read-only, or the path cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")

    def fill() -> None:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            crash_point("write-unsynced")
            os.fsync(file.fileno())

    with refusing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        steady(fill)
        crash_point("write-unnamed")
        rename(temporary, path)
        crash_point("write-renamed")
        steady(sync_path, path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON (`to_json`), as `write_bytes` does."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """Formats JSON: keys sorted, floats exact. NaN and infinity are a ValueError."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


class Appender:
    """Appends to a file, such as the rows of metrics.

    `write` returns when the system has all of the text; `sync` makes it durable. A
    crash may leave a torn last line, which the reader drops.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with refusing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_regular(self.path)
            self._open()
            steady(sync_path, self.path.parent)

    def _open(self) -> None:
        def append() -> io.FileIO:
            return open(self.path, "ab", 0)

        self._file = steady(append)
        self._size = self._file.tell()

    def write(self, text: str | bytes) -> None:
        """Appends a text, or bytes as they are.

        Raises:
          StorageError: the disk is full, or the file cannot be written.
        """
        data = text.encode() if isinstance(text, str) else text

        def append() -> None:
            os.ftruncate(self._file.fileno(), self._size)  # left by a failed attempt
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

        crash_point("append-start")
        with refusing(self.path, len(data)):
            steady(append)
        self._size += len(data)
        crash_point("append-done")

    def sync(self) -> None:
        """Makes all that was written durable; errors as of `write`."""
        with refusing(self.path):
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                self._file.close()
                write_bytes(self.path, steady(self.path.read_bytes))
                self._open()
        crash_point("append-synced")

    def close(self) -> None:
        """Closes the file, without a sync."""
        self._file.close()


def commit(partial: Path, final: Path, **facts: Any) -> None:
    """Makes a directory durable and renames it, as a whole or not at all.

    Its MANIFEST.json gets the facts, and the size and SHA-256 of each file.

    Args:
      partial: the directory as it was written.
      final: its name from now on; it must not exist.
      facts: what else the manifest holds, such as step and run.

    Raises:
      StorageError: the disk is full or read-only, or `final` exists.
    """
    partial, final = Path(partial), Path(final)
    crash_point("commit-start")
    with refusing(partial):
        files = {}
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            sync_file(path)
            name = path.relative_to(partial).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    crash_point("commit-hashed")
    write_text(partial / MANIFEST, _manifest_text({**facts, "files": files}))
    crash_point("commit-manifest")
    with refusing(final):
        for path in [p for p in partial.rglob("*") if p.is_dir()]:
            steady(sync_path, path)
        steady(sync_path, partial)
        crash_point("commit-synced")
        rename(partial, final)
        crash_point("commit-renamed")
        steady(sync_path, final.parent)
    crash_point("commit-done")


def verify(directory: Path, **facts: Any) -> dict[str, Any]:
    """Verifies each file of a committed directory by its manifest.

    Files that the manifest does not list are ignored.

    Args:
      facts: what the manifest must hold; a step that was renamed to another differs.

    Returns:
      All facts of the manifest.

    Raises:
      CheckpointError: a file is missing, cut or changed; names it.
      StorageError: a file cannot be read.
    """
    directory = Path(directory)
    content = read_manifest(directory)
    for name, value in facts.items():
        if content.get(name) != value:
            found = f"{name} {content.get(name)!r}"
            raise _damage(directory / MANIFEST, found, f"{name} {value!r}")
    for name, entry in content.pop("files").items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _damage(directory / MANIFEST, f"a file {name!r}", "files within it")
        if not path.is_file():
            raise _damage(path, "no file", "the file that was committed")
        with refusing(path):
            size, digest = steady(os.stat, path).st_size, _sha256(path)
        if size != entry["bytes"]:
            raise _damage(path, f"{size:,} bytes", f"{entry['bytes']:,} bytes")
        if digest != entry["sha256"]:
            found, expected = digest[:12], entry["sha256"][:12]
            raise _damage(path, f"other bytes (SHA-256 {found}...)", f"{expected}...")
    return content


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads the manifest of a committed directory: its facts, and `files`.

    Raises:
      CheckpointError: it is missing, or differs in a byte from what was written.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise _damage(path, "no file", "the manifest of a committed directory")
    with refusing(path):
        data = steady(path.read_bytes)
    try:
        content = json.loads(data)
        del content["sha256"]
        intact = _manifest_text(content).encode() == data
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise _damage(path, "other bytes", "the manifest as it was committed")
    return content


def remove_tree(path: Path) -> None:
    """Removes a directory; it is renamed first, so that no reader sees half of it."""
    path = Path(path)
    doomed = path.with_name(f"{path.name.removesuffix('.removed')}.removed")
    with refusing(path):
        if doomed.exists():
            steady(shutil.rmtree, doomed)
        if path.exists():
            rename(path, doomed)
            crash_point("remove-renamed")
            steady(shutil.rmtree, doomed)
    crash_point("remove-done")


@contextmanager
def holding(path: Path, *, alone: bool = False) -> Iterator[bool]:
    """Locks a directory: shared, to read it, or `alone`, to remove it.

    Yields:
      Whether it is locked. It is not if the directory is gone or, with `alone`, if
      another process reads it. On a file system without such locks it counts as locked.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    held = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except BlockingIOError:
        held = False
    except OSError:
        pass  # There are no such locks here.
    try:
        yield held and os.path.exists(path)
    finally:
        os.close(handle)


def _manifest_text(content: dict[str, Any]) -> str:
    """Formats a manifest, with a checksum of itself."""
    digest = hashlib.sha256(to_json(content).encode()).hexdigest()
    return to_json({**content, "sha256": digest})


def _sha256(path: Path) -> str:
    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return steady(digest)


def _damage(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(str(path), found, expected)
