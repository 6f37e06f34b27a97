"""Reads the input of a command: lines of a file or of standard input, with places."""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import DataError
from lm.host import files

MOST = 2**30  # bytes of an input
STDIN = "standard input"


class Line(NamedTuple):
    """A line without its end, and where it stands (`FILE:LINE`), for errors."""

    where: str
    text: str


def read_lines(
    path: Path | None, note: Callable[[str], None], what: str = "a text"
) -> list[Line]:
    """Reads all lines, of a file (`.gz` decompressed) or of standard input.

    Args:
      path: None is standard input.
      note: writes a line to the user, who is told what to type on a terminal.
      what: what a line holds, for that line.

    Raises:
      DataError: a missing, damaged or too large file, or bytes that are not UTF-8.
    """
    if path is None:
        if sys.stdin.isatty():
            note(f"{what} on each line, then Ctrl-D:")
        data, name = sys.stdin.buffer.read(MOST + 1), STDIN
        _check_size(len(data), name)
    else:
        data, name = files.read_bytes(path, limit=MOST, error=DataError), str(path)
        if path.suffix == ".gz":
            data = _decompress(data, name)
    return [*_lines(data.removeprefix(b"\xef\xbb\xbf"), name)]


def _lines(data: bytes, name: str) -> Iterator[Line]:
    for number, raw in enumerate(data.splitlines(), 1):
        where = f"{name}:{number}"
        yield Line(where, files.decode(raw, where, DataError))


def _decompress(data: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            out = file.read(MOST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        found = f"a damaged gzip file ({error})"
        raise DataError(name, found, "a whole one", "copy it again") from error
    _check_size(len(out), name)
    return out


def _check_size(size: int, name: str) -> None:
    if size > MOST:
        raise DataError(name, f"more than {MOST:,} bytes", "less", "split it")


def parse_object(line: Line, example: str) -> dict[str, Any]:
    """Parses a line that is a JSON object.

    Args:
      example: such a line, for the error.

    Raises:
      DataError: names the line.
    """
    row = files.parse_json(line.text, line.where, error=DataError, expected=example)
    if not isinstance(row, dict):
        raise DataError(line.where, _short(line.text), example)
    return row


def text_field(row: dict[str, Any], name: str, where: str, example: str) -> str:
    """Returns a field that holds a text.

    Raises:
      DataError: it is missing, is no text, or cannot be written as UTF-8.
    """
    value = row.get(name)
    if not isinstance(value, str):
        found = f"no {name!r}" if name not in row else f"{name}={_short(repr(value))}"
        raise DataError(where, found, example)
    try:
        value.encode()
    except UnicodeEncodeError:
        found = f"half of a surrogate pair in {name!r}"
        raise DataError(where, found, "UTF-8 text") from None
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
