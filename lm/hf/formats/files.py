"""Opens and parses files from strangers within limits, or refuses them by name."""

import json
import math
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lm.errors import CheckpointError

# Parsed JSON takes up to thirty times the memory of its text: at most 150 MB here.
MAX_JSON = 4 * 2**20


def refuse(
    path: Path | str, found: str, expected: str, fix: str | None = None
) -> NoReturn:
    """Raises CheckpointError; by default the fix is to fetch the file again."""
    raise CheckpointError(str(path), found, expected, fix or "fetch the file again.")


def regular(path: Path) -> int:
    """Returns the size of a regular file in bytes.

    A pipe or a device may block or never end, so it is not opened at all.

    Raises:
      CheckpointError: the path is absent or no regular file.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        _unreadable(path, error)
    if not stat.S_ISREG(facts.st_mode):
        refuse(path, "no regular file", "a file", "correct the path.")
    return facts.st_size


def beside(directory: Path, name: Any, where: Path) -> Path:
    """Returns the path of a directory's file; refuses names with a path in them.

    Args:
      name: as a file names it, so of any type.
      where: the file that names it, for the error.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..")
    if not plain or any(c in name for c in "/\\\0:") or not name.isprintable():
        refuse(where, f"the file name {name!r}"[:200], "a name without a folder")
    return directory / name


def read_bytes(path: Path, limit: int) -> bytes:
    """Returns the content of a file; refuses one of more than `limit` bytes."""
    size = regular(path)
    if size > limit:
        refuse(path, f"{size:,} bytes", f"at most {limit:,}")
    try:
        with open(path, "rb") as file:
            return file.read(limit + 1)[:limit]
    except OSError as error:
        _unreadable(path, error)


def map_bytes(path: Path) -> np.ndarray:
    """Maps a file into memory as a read-only uint8 array (N,); reads nothing yet.

    The file must not be shortened while the array is in use.
    """
    if regular(path) == 0:
        refuse(path, "an empty file", "tensors")
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        _unreadable(path, error)
    return np.frombuffer(mapped, np.uint8)


def parse_json(
    data: bytes, path: Path, limit: int = MAX_JSON, kind: type = dict
) -> Any:
    """Parses a JSON object, or another `kind` of value, of at most `limit` bytes.

    Raises:
      CheckpointError: it is too large, no JSON object, has a key twice, or a number
        that is not finite.
    """
    if len(data) > limit:
        refuse(path, f"JSON of {len(data):,} bytes", f"at most {limit:,}")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        refuse(path, "JSON nested too deep", "a JSON object")
    except ValueError as error:
        refuse(path, f"broken JSON ({str(error)[:200]})", "a JSON object")
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else f"a JSON {kind.__name__}"
        refuse(path, f"JSON of type {type(value).__name__}", expected)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises as `parse_json`."""
    return parse_json(read_bytes(path, MAX_JSON), path)


def read_json_list(path: Path) -> list[Any]:
    """Returns the JSON list in a file; raises as `parse_json`."""
    return parse_json(read_bytes(path, MAX_JSON), path, kind=list)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise ValueError(f"the key {twice[:80]!r} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _unreadable(path: Path, error: Exception) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    refuse(path, (reason or str(error)).lower(), "a readable file", "check the path.")


def check_shape(shape: Sequence[int], where: Any) -> None:
    """Refuses a shape whose sizes, without zeros, have a product of 2^63 or more."""
    if math.prod(filter(None, shape)) >= 2**63:
        refuse(where, f"shape {str(tuple(shape))[:80]}", "sizes of an array")


def is_file(path: Path) -> bool:
    """Returns whether a path is a file; False for a name that the system refuses."""
    return os.path.isfile(path)
