"""Files of text: found by name or glob, read line by line, decoded strictly."""

import contextlib
import difflib
import functools
import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from lm.errors import DataError

MAX_RECORD = 2**28  # Bytes. Reading is bounded by one record, so a record is bounded.


def find_files(pattern: str) -> list[Path]:
    """Finds the file of this name, or the files that match, sorted; at least one."""
    path = Path(os.path.expanduser(pattern))
    if path.name.startswith("._"):
        raise DataError(
            pattern,
            "a macOS resource fork (its name begins with ._)",
            "the data file itself",
            f"name {path.name.removeprefix('._')}, and delete this one",
        )
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        raise DataError(
            pattern, "a folder", "a file or a glob", f"write {path / '*.txt'}"
        )
    names = [] if "\0" in pattern else glob.glob(str(path), recursive=True)
    matches = sorted(map(Path, names))
    matches = [m for m in matches if os.path.isfile(m) and not m.name.startswith("._")]
    if matches:
        return matches
    folder = path.parent
    while not os.path.isdir(folder):
        folder = folder.parent
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []
    wanted = path.parts[len(folder.parts)]
    near = difflib.get_close_matches(wanted, names, 3, 0.5)
    if not near and folder != folder.parent:  # What lies in / helps nobody.
        near = [name for name in names if not name.startswith(".")][:3]
    raise DataError(
        pattern,
        "no file that matches" if set("*?[") & set(pattern) else "no such file",
        "an existing file",
        f"{folder} holds {', '.join(near) or f'no {wanted}'}",
    )


def expect_suffix(path: Path, suffix: str, expected: tuple[str, ...]) -> None:
    """Raises a DataError unless the file is of the expected kind by its name."""
    if suffix not in expected:
        raise DataError(
            str(path),
            f"a file whose name ends in {suffix!r}",
            f"{', '.join(expected)} (and .gz)",
            "choose the source that reads such files, or rename it",
        )


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(str(path), f"a file that cannot be read ({error})", "a file")


def read_lines(path: Path) -> Iterator[bytes]:
    """Reads lines with their ends: `.gz` unpacked, CRLF made LF, no byte-order mark.

    Raises:
      DataError: the file cannot be read, or a line is longer than `MAX_RECORD`.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with io.BufferedReader(opened(path, "rb"), 2**20) as file:
            lines = iter(functools.partial(file.readline, MAX_RECORD + 1), b"")
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.endswith(b"\r\n"):
                    line = line[:-2] + b"\n"
                check_size(len(line), path, number)
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            str(path), f"a damaged gzip file ({error})", "a whole one", "copy it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def check_size(size: int, path: Path, line: int) -> None:
    if size > MAX_RECORD:
        raise DataError(
            f"{path}:{line}",
            f"a record of more than {MAX_RECORD >> 20} MiB",
            "smaller ones",
            "split the file, for text by lines",
        )


def decode(raw: bytes, place: str | Path, line: int | None = None) -> str | DataError:
    """Decodes strict UTF-8 without NUL bytes; returns an error with line and column.

    Args:
      raw: one or more whole lines.
      place: the file, or another name of where the bytes come from.
      line: the number of the first of these lines; None where there are no lines.
    """
    try:
        text = raw.decode()
        if "\0" not in text:
            return text
        at = raw.index(0)
    except UnicodeDecodeError as error:
        at = error.start
    before = raw[raw.rfind(b"\n", 0, at) + 1 : at]
    number = "" if line is None else f":{line + raw.count(10, 0, at)}"
    guess = guess_encoding(raw)
    command = (
        f" (it may be {guess}: iconv -f {guess} -t UTF-8 OLD > NEW)" if guess else ""
    )
    return DataError(
        f"{place}{number}",
        f"byte 0x{raw[at]:02x} at column {len(before.decode()) + 1}",
        "UTF-8 text without NUL bytes",
        f"convert the file to UTF-8{command * bool(guess)}, or set data.on_bad=skip",
    )


def guess_encoding(raw: bytes) -> str | None:
    """Guesses the encoding of bytes that are no UTF-8, by its name in iconv."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if raw.count(0) > len(raw) // 4:
        return "UTF-16LE" if raw[1::2].count(0) > raw[::2].count(0) else "UTF-16BE"
    if b"\0" in raw:
        return None
    runs = re.findall(rb"[\x80-\xff]+", raw)
    high = b"".join(runs)
    if sum(len(run) == 1 for run in runs) * 2 > len(runs):
        return "WINDOWS-1252"  # Letters with accents stand alone among others.
    # Frequent Chinese characters begin with B0 to D7, Cyrillic letters are above.
    leads = [byte for run in runs for byte in run[::2]]
    if sum(0xB0 <= byte <= 0xD7 for byte in leads) * 2 > len(leads):
        with contextlib.suppress(UnicodeDecodeError):
            raw.decode("gb18030")
            return "GB18030"
    if sum(byte >= 0xC0 for byte in high) * 10 > 9 * len(high):
        return "WINDOWS-1251"
    return None
