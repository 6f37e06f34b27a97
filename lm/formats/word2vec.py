"""Files of word vectors in the format of word2vec, text or binary.

    2 3                         how many words, and numbers of each
    the 0.1 0.25 -1.5           text; or
    the <12 bytes>              the word, a space and little-endian float32

A binary entry may end with a line feed, which the program that was published writes and
others do not. A file is written as text, or in binary where its name ends in .bin.
"""

import itertools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm.errors import DataError
from lm.formats import vectors as common
from lm.formats.vectors import Vectors
from lm.formats.vectors import workdir as workdir
from lm.host import storage

VECTORS = True  # A model's table can start from them (`init.source`).
LONGEST = 1 << 16  # bytes of a word


def read(path: Path) -> Vectors:
    """Reads a file, text or binary; decompresses `.gz`.

    Raises:
      DataError: names the line, or the number of the word in a binary file.
    """
    try:
        with common.opened(path) as file:
            count, width = _header(path, file.readline(1 << 12))
            if _is_text(file.peek(1024)):
                lines = itertools.islice(file, count)
                words, table = common.read_lines(path, lines, 2, width)
                rest = len(words) + sum(1 for line in file if line.strip())
                if rest != count:
                    where = f"{path}:{min(rest, count) + 2}"
                    raise DataError(where, f"{rest} words", f"{count}, by line 1")
                return Vectors(words, table)
            return _binary(path, file, count, width)
    except common.READING as error:
        raise common.damaged(path, error) from error


def _header(path: Path, line: bytes) -> tuple[int, int]:
    """Reads the number of words and of numbers.

    Raises:
      DataError: the first line has something else.
    """
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        found = line.decode(errors="replace").strip()
        expected = "the numbers of words and of dimensions, such as 400000 100"
        raise DataError(
            f"{path}:1", f"{found!r:.60}", expected, "GloVe's files have no such line"
        )
    count, width = int(fields[0]), int(fields[1])
    if not width:
        raise DataError(f"{path}:1", "0 dimensions", "at least 1")
    return count, width


def _is_text(ahead: bytes) -> bool:
    """Tells whether entries are text: what can be printed, and no control signs."""
    line = ahead[:1024].partition(b"\n")[0].rstrip(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if error.start < 1021:  # Else the last character is cut.
            return False
        text = line[: error.start].decode()
    return text.replace("\t", " ").isprintable()


def _binary(path: Path, file: BinaryIO, count: int, width: int) -> Vectors:
    """Reads binary entries.

    Raises:
      DataError: the file ends too early or too late, or a word is none.
    """
    words: list[str] = []
    seen: dict[str, int] = {}
    rows = []
    for number in range(1, count + 1):
        where = f"{path}: word {number} of {count}"
        name = _word(file, where)
        try:
            word = name.lstrip(b"\n").decode()
        except UnicodeDecodeError:
            found = f"{name[:40]!r}"
            raise DataError(where, found, "a word in UTF-8") from None
        data = file.read(4 * width)
        if len(data) < 4 * width:
            found = f"the end of the file after {len(data)} bytes of {word!r:.60}"
            raise DataError(where, found, f"{width} numbers of 4 bytes")
        if word in seen or not word:
            found = f"the word {word!r:.60}" + " again" * (word in seen)
            raise DataError(where, found, "each word once, and none empty")
        seen[word] = number
        words.append(word)
        row = np.frombuffer(data, "<f4")
        if not np.isfinite(row).all():
            raise DataError(where, f"{word!r:.60}, not finite", "finite numbers")
        rows.append(row)
    rest = file.read(64).strip(b"\n")
    if rest:
        found = f"more after the last word ({rest[:20]!r}...)"
        raise DataError(str(path), found, f"{count} words of {width} numbers")
    table = np.stack(rows) if rows else np.zeros((0, width), np.float32)
    return Vectors(words, table.astype(np.float32))


def _word(file: BinaryIO, where: str) -> bytes:
    """Reads up to the space that ends a word."""
    found = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(found) > LONGEST:
            what = "the end of the file" if not byte else "no space"
            raise DataError(where, what, "a word and a space")
        found += byte
    return bytes(found)


def write(path: Path, config: Any, codec: Any, params: dict[str, Any]) -> str:
    """Writes the vectors of a run's words; returns a summary for the log.

    Raises:
      ConfigError: the run has no word vectors, or a word that cannot be written.
    """
    found = common.of_run(config, codec, params)
    table = found.composed()
    head = f"{len(found.words)} {table.shape[1]}\n".encode()
    if path.suffix == ".bin":
        rows = zip(found.words, np.asarray(table, "<f4"))
        parts = [word.encode() + b" " + row.tobytes() + b"\n" for word, row in rows]
    else:
        parts = list(common.text_of(found.words, table))
    storage.write_bytes(path, head + b"".join(parts))
    return f"{len(found.words):,} words, {table.shape[1]} dimensions"
