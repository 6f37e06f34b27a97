"""What a command is asked about: texts, lines of standard input, or a file of records.

All three are a `Source`, so that a file is read as a training set is: by column names,
decompressed, decoded strictly, with the line of whatever is wrong.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.data.sources import base, csv, jsonl, text, tsv
from lm.data.sources.base import Source
from lm.errors import ConfigError, DataError
from lm.host.inputs import STDIN, Line

READERS: Mapping[str, Any] = {
    ".jsonl": jsonl.Source,
    ".ndjson": jsonl.Source,
    ".json": jsonl.Source,
    ".csv": csv.Source,
    ".tsv": tsv.Source,
    ".txt": text.Source,
}


def open_file(path: str, columns: Mapping[str, str], *, header: bool = True) -> Source:
    """Opens a file of records, read by the end of its name; `.gz` is decompressed.

    Args:
      columns: field of a record -> column of the file. A text file has one field, and
        each line is a record, also an empty one.
      header: whether the first line of a table names the columns; otherwise `columns`
        names all of them in their order.

    Raises:
      ConfigError: the name says no format, or a text file is asked for two columns.
      DataError: the file or a column is missing.
    """
    name = path.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in READERS:
        expected = f"a name that ends in {', '.join(READERS)}"
        raise ConfigError("--input", repr(path), expected)
    reader = READERS[suffix]
    if reader is text.Source:
        if len(columns) > 1:
            expected = "one column for a text file, in which a line is a text"
            raise ConfigError("--input", f"columns {', '.join(columns)}", expected)
        source: Source = text.Source(files=path, split="every_line")
    elif reader is jsonl.Source:
        source = jsonl.Source(files=path, columns=dict(columns), lists=True)
    elif header:
        source = reader(files=path, columns=dict(columns))
    else:
        source = reader(files=path, columns=tuple(columns), header=False)
    source.check()
    return source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(base.Source):
    """Records that are given as they are.

    Args:
      items: where each comes from, for errors, and its fields.
    """

    items: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def place(self) -> str:
        return "the texts"

    def read(self) -> Iterator[base.Record | DataError]:
        for where, fields in self.items:
            yield base.take(fields, {name: name for name in fields}, where, lists=True)


def of_lines(lines: Iterable[Line], columns: Sequence[str]) -> Given:
    """Makes records of lines, also of empty ones.

    Args:
      columns: the fields of a record; a tab parts the texts of several.

    Raises:
      DataError: a line has another number of texts, or there is none.
    """
    items = []
    for where, line in lines:
        cells = line.split("\t") if len(columns) > 1 else [line]
        if len(cells) != len(columns):
            found = "1 text" if len(cells) == 1 else f"{len(cells)} texts"
            expected = f"{' and '.join(columns)}, with a tab between them"
            raise DataError(where, found, expected)
        items.append((where, dict(zip(columns, cells))))
    if not items:
        raise DataError(STDIN, "nothing", "a text on each line")
    return Given(items=tuple(items))
