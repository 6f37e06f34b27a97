"""Comma-separated files with named columns."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lm.data import files
from lm.data.sources import base
from lm.errors import ConfigError, DataError

MAX_CELL = 2**24  # Characters; limits what is read after a quote without an end.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Records from the rows of a table; all values are strings.

    A row whose number of cells differs from the number of columns is a bad record.
    Blank lines are skipped. A row with quoted cells may span several lines.

    Args:
      columns: the columns to take, or {field: column} to give them other names. Without
        a header: the names of all columns in order.
      header: whether the first row of every file names the columns.
      delimiter: the character between cells.
      quoting: whether cells may be wrapped in double quotes, doubled within a cell
        (RFC 4180); otherwise a quote is an ordinary character.
    """

    columns: tuple[str, ...] | dict[str, str] = ("text",)
    header: bool = True
    delimiter: Literal[",", ";", "|", "\t"] = ","
    quoting: bool = True

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".csv", ".txt"))

    def check(self) -> None:
        super().check()
        for path in self.paths():
            rows = self.rows(path)
            names = self.names(path, rows)
            if self.header:
                continue
            for where, cells in rows:
                if isinstance(cells, list) and len(cells) != len(names):
                    raise wrong_length(cells, names, where)
                break

    def read(self) -> Iterator[base.Record | DataError]:
        columns = base.columns_of(self.columns)
        for path in self.paths():
            rows = self.rows(path)
            names = self.names(path, rows)
            places = [(field, names.index(name)) for field, name in columns.items()]
            for where, cells in rows:
                if isinstance(cells, DataError):
                    yield cells
                elif len(cells) != len(names):
                    yield wrong_length(cells, names, where)
                else:
                    yield base.Record({name: cells[i] for name, i in places}, where)

    def names(
        self, path: Path, rows: Iterator[tuple[str, list[str] | DataError]]
    ) -> list[str]:
        """Returns the column names; consumes the header from `rows` if there is one."""
        columns = base.columns_of(self.columns)
        if not self.header:
            if isinstance(self.columns, tuple):
                return list(columns)
            raise ConfigError(
                "columns",
                repr(self.columns),
                "the names of all columns in order, as header is False",
                "set columns=('text', 'label'), say",
            )
        where, names = next(rows, (str(path), []))
        if isinstance(names, DataError):
            raise names
        for name in names:
            if names.count(name) > 1:
                raise DataError(where, f"two columns {name!r}", "different names")
        missing = base.missing_column(columns, names, where)
        if missing is not None:
            fix = f"{missing.fix}; if this row is no header, set header=False"
            fix = self.other_delimiter(names) or fix
            raise DataError(missing.where, missing.found, missing.expected, fix)
        return names

    def other_delimiter(self, names: list[str]) -> str | None:
        """Returns a fix if another delimiter gives the wanted columns, else None."""
        line = self.delimiter.join(names)
        for other in (",", ";", "|", "\t"):
            cut = [name.strip().strip('"') for name in line.split(other)]
            if {*base.columns_of(self.columns).values()} <= {*cut}:
                return f"cells seem to be parted by {other!r}: set delimiter={other!r}"
        return None

    def rows(self, path: Path) -> Iterator[tuple[str, list[str] | DataError]]:
        """Yields the location and the cells, or the error, of every non-blank row."""
        taken: list[bytes] = []  # The raw lines of this row.

        def lines() -> Iterator[str]:
            for raw in files.read_lines(path):
                taken.append(raw)
                # Invalid UTF-8 must not hide the end of a quoted cell.
                yield raw.decode(errors="surrogateescape")

        csv.field_size_limit(MAX_CELL)
        reader = csv.reader(
            lines(),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE,
            strict=True,
        )
        line = 1
        while True:
            where = f"{path}:{line}"
            try:
                cells: list[str] | DataError = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = DataError(
                    where,
                    f"a row that cannot be parsed ({error})",
                    f"cells between {self.delimiter!r}, quoted as in RFC 4180"
                    if self.quoting
                    else f"cells between {self.delimiter!r}",
                    "set quoting=False if quotes are ordinary characters"
                    if self.quoting
                    else None,
                )
            text = files.decode(b"".join(taken), path, line)
            line += len(taken)
            taken.clear()
            if isinstance(text, DataError):
                yield where, text
            elif cells:
                yield where, cells


def wrong_length(cells: list[str], names: list[str], where: str) -> DataError:
    return DataError(
        where, f"{len(cells)} cells", f"{len(names)} ({', '.join(names)[:200]})"
    )
