"""Files of word vectors in the format of GloVe: text without a header.

    the 0.1 0.25 -1.5           a word and its numbers, on each line

The number of dimensions is that of the first line. A word may hold spaces, as in some
published files, so a line is split from the right.
"""

from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.formats import vectors as common
from lm.formats.vectors import Vectors
from lm.formats.vectors import workdir as workdir
from lm.host import storage

VECTORS = True  # A model's table can start from them (`init.source`).


def read(path: Path) -> Vectors:
    """Reads a file; decompresses `.gz`.

    Raises:
      DataError: names the line.
    """
    try:
        with common.opened(path) as file:
            first = file.peek(1 << 16).partition(b"\n")[0].split()
            if len(first) == 2 and all(field.isdigit() for field in first):
                found = f"{b' '.join(first).decode()!r}, a header"
                fix = "read it as word2vec:FILE"
                raise DataError(f"{path}:1", found, "a word and numbers", fix)
            words, table = common.read_lines(path, file, 1, None)
    except common.READING as error:
        raise common.damaged(path, error) from error
    if not table.size:
        found = "no number" if words else "no line"
        raise DataError(f"{path}:1", found, "a word and its numbers")
    return Vectors(words, table)


def write(path: Path, config: Any, codec: Any, params: dict[str, Any]) -> str:
    """Writes the vectors of a run's words; returns a summary for the log.

    Raises:
      ConfigError: the run has no word vectors, or a word that cannot be written.
    """
    found = common.of_run(config, codec, params)
    table = found.composed()
    storage.write_bytes(path, b"".join(common.text_of(found.words, table)))
    return f"{len(found.words):,} words, {table.shape[1]} dimensions"
