"""Words and their tags, one word on a line: CoNLL columns, CoNLL-U, PropBank roles."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lm.data import files
from lm.data.sources import base
from lm.errors import ConfigError, DataError

BLANKS = " \t\r\n"
DOCUMENT = "-DOCSTART-"
# The id of a word in CoNLL-U, and of lines that are no words: the letters of several
# words written as one ("1-2"), and words that the text leaves out ("1.1").
WORD_ID, OTHER_ID = re.compile(r"\d+"), re.compile(r"\d+[-.]\d+")
NO_FRAME = ("", "_")

Line = tuple[int, list[str]]  # its number in the file, and its cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Sentences from files with a word on each line and blank lines between sentences.

    A line of white space alone is blank. Each field of a record is a list with an item
    for each word. Lines `-DOCSTART-` are left out. A line with too few cells, or with
    an empty one, makes its sentence a bad record; the error names the line.

    Args:
      columns: {field: number of its column}, from 1; -1 is the last one. CoNLL-2003:
        dict(words=1, tags=-1). CoNLL-U: dict(words=2, tags=4) for universal parts of
        speech, tags=5 for those of the treebank.
      format: "columns", or "conllu", where lines that begin with # are comments, and
        words are the lines whose first cell is a whole number: neither contractions
        ("1-2") nor empty nodes ("1.1").
      separator: what parts the cells. "tab" keeps empty cells and spaces within cells;
        "space" is any run of spaces and tabs; "auto" is "tab" where the first line of
        a file has one.
      comments: whether a record has the field `comments`, the lines of a sentence's
        comments with a line feed between them (CoNLL-U).
      frames: the column of the frames of predicates, with a column after it for the
        roles of each predicate in order (CoNLL-2008, Universal PropBank). There is a
        record for each predicate, with the fields `tags` (the roles), `predicate` (the
        number of its word, from 0) and `frame`. Sentences without one are left out.
    """

    columns: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"words": 1, "tags": -1}
    )
    format: Literal["columns", "conllu"] = "columns"
    separator: Literal["auto", "tab", "space"] = "auto"
    comments: bool = False
    frames: int | None = None

    def check_suffix(self, path: Path, suffix: str) -> None:
        """Accepts every name: corpora of this kind have names of many kinds."""

    def check(self) -> None:
        own = {"comments": self.comments, "frames": self.frames is not None}
        taken = {"comments"} if own["comments"] else set()
        taken |= {"tags", "predicate", "frame"} if own["frames"] else set()
        for field, number in self.columns.items():
            if number == 0:
                found, expected = f"{field}: 0", "1 for the first column, -1 the last"
                raise ConfigError("source conll, columns", found, expected)
            if field in taken:
                found = f"a field {field!r}, which the option of that name makes"
                raise ConfigError("source conll, columns", found, "another name")
        if not self.columns:
            fix = "set columns=dict(words=1, tags=-1)"
            raise ConfigError("source conll, columns", "none", "one at least", fix)
        if self.frames is not None and self.frames < 1:
            found = str(self.frames)
            raise ConfigError("source conll, frames", found, "a column, from 1")
        if self.comments and self.format != "conllu":
            found = "True with format='columns'"
            raise ConfigError("source conll, comments", found, "format='conllu'")
        super().check()
        for item in self.read():  # A column that lacks there lacks in all lines.
            if isinstance(item, DataError):
                raise item
            break

    def read(self) -> Iterator[base.Record | DataError]:
        for path in self.paths():
            for item in self._sentences(path):
                if isinstance(item, DataError):
                    yield item
                elif self.frames is None:
                    yield self._record(path, *item)
                else:
                    yield from self._predicates(path, *item)

    def _sentences(
        self, path: Path
    ) -> Iterator[tuple[list[str], list[Line]] | DataError]:
        """Yields the comments and the lines of words of each sentence, or its error."""
        tabs = self.separator == "tab" if self.separator != "auto" else None
        notes: list[str] = []
        lines: list[Line] = []
        error: DataError | None = None
        for number, raw in enumerate(files.read_lines(path), 1):
            text = files.decode(raw, path, number)
            if isinstance(text, DataError):
                error = error or text
                continue
            if not text.strip(BLANKS):
                if error or lines:
                    yield error or (notes, lines)
                notes, lines, error = [], [], None
                continue
            if self.format == "conllu" and text.startswith("#"):
                notes.append(text.rstrip("\n"))
                continue
            if tabs is None:
                tabs = "\t" in text
            if tabs:
                cells = text.rstrip("\n").split("\t")
            else:
                cells = re.split("[ \t]+", text.strip(BLANKS))
            if cells[0] == DOCUMENT:
                continue
            if self.format == "conllu" and not WORD_ID.fullmatch(cells[0]):
                if not OTHER_ID.fullmatch(cells[0]):
                    found = f"a line that begins with {cells[0]!r:.40}"
                    expected = "the number of a word, as in CoNLL-U"
                    fix = "set format='columns' if it has no numbers"
                    error = error or DataError(f"{path}:{number}", found, expected, fix)
                continue
            error = error or self._check(path, number, cells)
            lines.append((number, cells))
        if error or lines:
            yield error or (notes, lines)

    def _check(self, path: Path, number: int, cells: list[str]) -> DataError | None:
        """Makes the error for a line that lacks a cell; None for others."""
        most = max([*map(abs, self.columns.values()), self.frames or 1])
        where = f"{path}:{number}"
        if len(cells) < most or (len(cells) < 2 <= len(self.columns)):
            fields = ", ".join(f"{k} {v}" for k, v in self.columns.items())
            least = max(most, min(2, len(self.columns)))
            found = f"{len(cells)} columns" if len(cells) > 1 else f"{cells[0]!r:.40}"
            expected = f"{least} or more columns ({fields})"
            return DataError(where, found, expected, "complete the line, or columns")
        for field, column in self.columns.items():
            if not self._cell(cells, column).strip(BLANKS):
                found = f"an empty cell in column {column} ({field})"
                return DataError(where, found, "a word or a tag")
        return None

    @staticmethod
    def _cell(cells: list[str], column: int) -> str:
        return cells[column - 1 if column > 0 else column]

    def _record(
        self, path: Path, notes: list[str], lines: list[Line], **more: object
    ) -> base.Record | DataError:
        fields: dict[str, object] = {
            field: [self._cell(cells, column) for _, cells in lines]
            for field, column in self.columns.items()
        }
        if self.comments:
            fields["comments"] = "\n".join(notes)
        where = f"{path}:{lines[0][0]}"
        return base.make_record(fields | more, where, lists=True)

    def _predicates(
        self, path: Path, notes: list[str], lines: list[Line]
    ) -> Iterator[base.Record | DataError]:
        """Yields a record for each predicate of a sentence."""
        column = self.frames or 1
        frames = [cells[column - 1].strip() for _, cells in lines]
        places = [at for at, frame in enumerate(frames) if frame not in NO_FRAME]
        for number, cells in lines:
            # A sentence without a predicate may end in one empty cell.
            if len(cells) != column + len(places) and (places or any(cells[column:])):
                yield DataError(
                    f"{path}:{number}",
                    f"{len(cells)} columns",
                    f"{column + len(places)}: one of roles after column {column} for "
                    f"each of the {len(places)} predicates",
                    "complete the line",
                )
                return
        for order, place in enumerate(places):
            roles = [cells[column + order] or "_" for _, cells in lines]
            more = {"tags": roles, "predicate": place, "frame": frames[place]}
            yield self._record(path, notes, lines, **more)
