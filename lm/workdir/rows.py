"""Checks that the rows of metrics.jsonl are those that the run has written.

Each checkpoint keeps the size and the SHA-256 of the rows up to its step. So rows that
somebody removed, doubled or altered are noticed when the run continues.
"""

import hashlib
from pathlib import Path
from typing import Any

from lm.host import files, storage
from lm.workdir.writer import step_of

CHUNK = 2**20


class Digest:
    """Hashes a file that grows; each call reads only what is new."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.reset()

    def reset(self) -> None:
        """Starts again, since the file has been cut."""
        self._hash, self._size = hashlib.sha256(), 0

    def facts(self) -> dict[str, Any] | None:
        """Returns the size and hash of the file; None where there is none."""
        size = files.check_regular(self.path)
        if size is None:
            return None
        if size < self._size:
            self.reset()
        with storage.refusing(self.path), open(self.path, "rb") as file:
            file.seek(self._size)
            while data := file.read(CHUNK):
                self._hash.update(data)
                self._size += len(data)
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


def complaint(path: Path, facts: dict[str, Any] | None) -> str | None:
    """Compares the rows up to a checkpoint with those that were written.

    Args:
      path: of metrics.jsonl.
      facts: of `Digest.facts` when the checkpoint was saved; None accepts any rows.

    Returns:
      What differs, for a warning; None where nothing does, or where the file is
      absent, which `writer.cut` reports.
    """
    if not facts or files.check_regular(path) is None:
        return None
    digest, left, order = hashlib.sha256(), facts["bytes"], _Order()
    with storage.refusing(path), open(path, "rb") as file:
        for line in file:
            order.see(line)
            digest.update(line[:left])
            left -= len(line[:left])
            if not left:
                break
    if not left and digest.hexdigest() == facts["sha256"]:
        return None
    why = order.wrong or ("the last are missing" if left else "some are altered")
    return f"{path.name}: not the rows that the run wrote before ({why})"


class _Order:
    """Finds the first row whose step does not follow that of the row before."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.wrong = ""

    def see(self, line: bytes) -> None:
        if self.wrong:
            return
        step = step_of(line)
        if step is None:
            self.wrong = f"a line after step {self.last} is no row"
        elif self.last is not None and step != self.last + 1:
            self.wrong = f"step {step} follows step {self.last}"
        self.last = step
