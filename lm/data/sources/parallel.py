"""Parallel texts: one file per column; line i of all files makes one record."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from lm.data import files
from lm.data.sources import base, text
from lm.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.Source):
    """Records from files that are aligned line by line, such as translations.

    Lines are read as the `text` source reads them: `.gz`, CRLF, byte-order marks,
    strict UTF-8. A line that is blank in every file is skipped; a line that is blank in
    some files gives an empty text in those columns.

    Args:
      files: column -> path or glob, or several of them in order. The k-th files of all
        columns are aligned and must have the same number of lines.
    """

    files: dict[str, str | tuple[str, ...]]

    neutral = ("weight", "files")

    @property
    def place(self) -> str:
        return ", ".join(column.place for column in self.columns().values())

    def columns(self) -> dict[str, text.Source]:
        return {
            name: text.Source(files=found, split="line")
            for name, found in self.files.items()
        }

    def check(self) -> None:
        if not self.files:
            raise ConfigError(
                "source parallel",
                "no files",
                "a file for each column",
                'set files=dict(source="train.en", target="train.de")',
            )
        for column in self.columns().values():
            column.check()
        self.groups()

    def content(self) -> Iterator[str]:
        for name, column in self.columns().items():
            yield name
            yield from column.content()

    def groups(self) -> list[tuple[Path, ...]]:
        """Returns the groups of aligned files, one file per column in each group."""
        paths = {name: column.paths() for name, column in self.columns().items()}
        counts = {name: len(found) for name, found in paths.items()}
        if len(set(counts.values())) > 1:
            raise DataError(
                self.place,
                ", ".join(f"{n} files of {name}" for name, n in counts.items()),
                "as many files in each column",
            )
        return list(zip(*paths.values()))

    def read(self) -> Iterator[base.Record | DataError]:
        for group in self.groups():
            readers = [enumerate(files.read_lines(path), 1) for path in group]
            for numbered in itertools.zip_longest(*readers):
                if None in numbered:
                    raise self._uneven(group, numbered, readers)
                number = numbered[0][0]
                lines = [line for _, line in numbered]
                if not all(map(bytes.isspace, lines)):
                    yield self._record(group, lines, number)

    def _record(
        self, group: tuple[Path, ...], lines: list[bytes], number: int
    ) -> base.Record | DataError:
        fields = {}
        for name, path, raw in zip(self.files, group, lines):
            value = files.decode(raw, path, number)
            if isinstance(value, DataError):
                return value
            fields[name] = value.removesuffix("\n")
        return base.Record(fields, f"{group[0]}:{number}")

    def _uneven(self, group, numbered, readers) -> DataError:
        """Makes the error that gives the number of lines of each file."""
        ended = max(item[0] for item in numbered if item) - 1
        counts = [
            ended if item is None else item[0] + sum(1 for _ in reader)
            for item, reader in zip(numbered, readers)
        ]
        return DataError(
            self.place,
            ", ".join(f"{n} lines in {path}" for path, n in zip(group, counts)),
            "as many lines in each file",
            "look where they stop going together, and repair that",
        )
