"""A file of rows, one for each input of a command, that the same command continues.

Beside `NAME` stands `NAME.settings.json`: what determines the rows. A command that
finds both appends what is missing; it refuses a file that was made otherwise.
"""

import abc
import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from lm.errors import ConfigError, DataError
from lm.host import files, storage

FIX = "give another --output, or remove this one"
Row = Mapping[str, Any]


class Form(abc.ABC):
    """How rows stand in a file.

    Attributes:
      headed: whether something comes before the first row.
    """

    headed: ClassVar[bool] = False

    def header(self, row: Row) -> bytes:
        """Returns what comes before the first row, which is given."""
        return b""

    @abc.abstractmethod
    def line(self, row: Row) -> bytes:
        """Returns a row as it stands in the file."""

    def parts(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        """Yields the header, if there is one, and each complete row.

        Each comes with the place in the file where it ends.
        """
        held: list[bytes] = []
        at, quoted = 0, False
        for line in file:
            held.append(line)
            at += len(line)
            quoted = not self._ends(line, quoted)
            if not quoted and line.endswith(b"\n"):
                yield b"".join(held), at
                held.clear()

    def _ends(self, line: bytes, quoted: bool) -> bool:
        """Tells whether a row ends with this line.

        Args:
          quoted: whether the line begins within a quoted cell.
        """
        return True


@dataclasses.dataclass(frozen=True)
class Json(Form):
    """Rows as JSON objects, one a line."""

    def line(self, row: Row) -> bytes:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()


@dataclasses.dataclass(frozen=True)
class Table(Form):
    """Rows as cells below a line of their names, quoted as in RFC 4180.

    A value within an object has the name `object.key`; a list is written as JSON.
    """

    delimiter: str

    headed: ClassVar[bool] = True

    def header(self, row: Row) -> bytes:
        return self._cells([name for name, _ in flat(row)])

    def line(self, row: Row) -> bytes:
        values = [value for _, value in flat(row)]
        texts = (
            "" if v is None else v if isinstance(v, str) else json.dumps(v)
            for v in values
        )
        return self._cells([*texts])

    def _ends(self, line: bytes, quoted: bool) -> bool:
        return (line.count(b'"') % 2 == 1) == quoted

    def _cells(self, cells: list[str]) -> bytes:
        out = io.StringIO()
        csv.writer(out, delimiter=self.delimiter, lineterminator="\n").writerow(cells)
        return out.getvalue().encode()


@dataclasses.dataclass(frozen=True)
class Matrix(Form):
    """The vectors of all rows as a float32 array in NumPy's format, (rows, width).

    The header has the number of all rows, and so numpy reads only a complete file.

    Args:
      field: of a row that holds its vector.
      rows: how many there will be.
    """

    field: str
    rows: int

    headed: ClassVar[bool] = True

    def header(self, row: Row) -> bytes:
        out = io.BytesIO()
        shape = (self.rows, len(row[self.field]))
        about = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, about)
        return out.getvalue()

    def line(self, row: Row) -> bytes:
        return np.asarray(row[self.field], "<f4").tobytes()

    def parts(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        try:
            np.lib.format.read_magic(file)
            (_, width), _, _ = np.lib.format.read_array_header_1_0(file)
        except ValueError:  # a torn header
            return
        at = file.tell()
        yield b"", at
        while len(raw := file.read(4 * width)) == 4 * width:
            at += len(raw)
            yield raw, at


FORMS: dict[str, Form] = {
    ".jsonl": Json(),
    ".ndjson": Json(),
    ".csv": Table(","),
    ".tsv": Table("\t"),
}


def form_of(path: Path) -> Form:
    """Returns the form of a file by the end of its name.

    Raises:
      ConfigError: the name ends in none of those of FORMS.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        expected = f"a name that ends in {', '.join(FORMS)}"
        raise ConfigError("--output", repr(str(path)), expected)
    return form


def flat(row: Row, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of a row and of the objects in it."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


class Output:
    """Appends rows to a file, after those that an earlier command left there.

    A torn last row, which a kill may leave, is taken off.

    Args:
      made: the settings that determine the rows, as JSON has them. A row of another
        setting is refused, as is a file without settings.
      total: how many rows there will be.
      form: of the rows; by default JSON lines.
      check: (number from 1, bytes of a row), called for each row that is there; raises
        a DataError for a row that does not belong to the input of this number.
      note: takes lines for the user.
      what: the inputs, for errors, such as "prompts".

    Attributes:
      kept: how many rows were there.

    Raises:
      DataError: the file was made with other settings or inputs, or is another file.
      StorageError: it cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        made: Mapping[str, Any],
        total: int,
        *,
        form: Form = FORMS[".jsonl"],
        check: Callable[[int, bytes], None] = lambda number, raw: None,
        note: Callable[[str], None] = lambda line: None,
        what: str = "rows",
    ):
        self.path, self._form, self._begun = Path(path), form, False
        self.kept = self._count(made, total, check, note, what)
        if self.kept:
            note(f"{self.path}: {self.kept} of {total} rows are there")
        else:
            storage.write_json(settings_file(self.path), made)
        self._file = storage.Appender(self.path)

    def write(self, row: Row) -> None:
        """Appends a row; before the first one, the header of the form."""
        header = b"" if self._begun else self._form.header(row)
        self._file.write(header + self._form.line(row))
        self._begun = True

    def sync(self) -> None:
        """Waits until the rows are on the disk."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _count(
        self,
        made: Mapping[str, Any],
        total: int,
        check: Callable[[int, bytes], None],
        note: Callable[[str], None],
        what: str,
    ) -> int:
        """Counts the complete rows that are there, and removes an incomplete one."""
        if not files.check_regular(self.path):
            return 0
        beside = settings_file(self.path)
        old = files.read_json(beside, {}, error=DataError) if beside.exists() else None
        if old is None:
            raise DataError(str(self.path), "a file of something else", "no file", FIX)
        for name in sorted({*old, *made}):
            if old.get(name) != made.get(name):
                raise DataError(
                    str(self.path),
                    f"answers made with {name}={old.get(name)!r}",
                    f"{name}={made.get(name)!r}, as now",
                    FIX,
                )
        ends = [end for _, end in self._rows()]
        whole, self._begun = ends[-1] if ends else 0, bool(ends)
        first = int(self._form.headed)
        count = max(len(ends) - first, 0)
        if count > total:
            found, expected = f"{count} rows", f"at most {total} {what}"
            raise DataError(str(self.path), found, expected, FIX)
        for number, (raw, _) in enumerate(self._rows(), 1 - first):
            if number:
                check(number, raw)
        if whole < self.path.stat().st_size:
            with storage.refusing(self.path):
                os.truncate(self.path, whole)
            note(f"{self.path}: took off a last row that was torn")
        return count

    def _rows(self) -> Iterator[tuple[bytes, int]]:
        """Yields what `Form.parts` does."""
        with storage.refusing(self.path), open(self.path, "rb") as file:
            yield from self._form.parts(file)


def settings_file(output: Path) -> Path:
    """Returns the file that holds the settings of an output."""
    return output.with_name(output.name + ".settings.json")
