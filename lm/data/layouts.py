"""How an objective wants its rows: what is tokenised, how it is cut, what is a row.

A layout is a frozen dataclass; its fields are part of the index's fingerprint.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm.data.index import Encoded, Writer
from lm.data.sources.base import Record
from lm.errors import DataError


def column_of(record: Record, column: str) -> Any:
    if column not in record.fields:
        raise DataError(
            record.where,
            f"columns {', '.join(map(str, record.fields))}",
            f"a column {column!r}",
            "name the source's columns in data.sources, or the objective's",
        )
    return record.fields[column]


def text_of(record: Record, column: str) -> str:
    text = column_of(record, column)
    if not isinstance(text, str):
        raise DataError(record.where, f"{column} {text!r}", "a text")
    return text


@dataclasses.dataclass(frozen=True)
class Documents:
    """Whole texts, cut into pieces that fit a row, packed several to a row or not.

    Packing is first-fit over the last `OPEN` rows that still have room.

    Args:
      length: tokens that a row holds, special tokens included.
      overhead: special tokens that each piece gets later.
      pack: whether a row may hold pieces of several documents.
      column: the field of the record that holds the text.
    """

    length: int
    overhead: int
    pack: bool
    column: str = "text"

    OPEN = 64

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        room = self.length - self.overhead
        open_rows: list[tuple[int, list[list[int]]]] = []  # (room left, pieces)
        for _, (tokens,) in records:
            for start in range(0, len(tokens), room):
                piece = tokens[start : start + room]
                size = len(piece) + self.overhead
                at = next((i for i, (r, _) in enumerate(open_rows) if r >= size), None)
                if at is None:
                    open_rows.append((self.length - size, [piece]))
                    at = len(open_rows) - 1
                else:
                    left, pieces = open_rows[at]
                    open_rows[at] = (left - size, [*pieces, piece])
                full = open_rows[at][0] <= self.overhead or not self.pack
                if full or len(open_rows) > self.OPEN:
                    out.row(open_rows.pop(at if full else 0)[1])
        for _, pieces in open_rows:
            out.row(pieces)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Runs of consecutive sentences of one document that fill a row, for NSP and SOP.

    A sentence ends at a line break or after `.`, `!` or `?` before white space. One
    longer than half a row is cut, so that every row has at least two. A share `short`
    of the rows aims at a random smaller length (Devlin et al. 2019, section A.2).
    A document of a single token gives no row.
    """

    length: int
    short: float
    column: str = "text"

    OVERHEAD = 3  # [CLS] A [SEP] B [SEP]

    def texts(self, record: Record) -> list[str]:
        text = text_of(record, self.column)
        return [s for s in re.split(r"\n+|(?<=[.!?。！？])\s+", text) if s.strip()]

    def write(self, records: Encoded, out: Writer) -> None:
        rng = np.random.default_rng(0)
        room = self.length - self.OVERHEAD
        half = room // 2
        document = 0
        for _, sentences in records:
            parts = [
                sentence[start : start + half]
                for sentence in sentences
                for start in range(0, len(sentence), half)
            ]
            if len(parts) == 1 and len(parts[0]) > 1:
                middle = len(parts[0]) // 2
                parts = [parts[0][:middle], parts[0][middle:]]
            for row in self._rows(parts, room, rng):
                out.row(row, document=document)
            document += bool(parts)

    def _rows(
        self, parts: list[list[int]], room: int, rng: np.random.Generator
    ) -> Iterator[list[list[int]]]:
        row: list[list[int]] = []
        target = room
        for part in parts:
            if len(row) > 1 and sum(map(len, row)) + len(part) > target:
                yield row
                row = []
            if not row:
                short = rng.random() < self.short
                target = int(rng.integers(2, room + 1)) if short else room
            row.append(part)
        if len(row) == 1 and len(row[0]) > 1:
            middle = len(row[0]) // 2
            row = [row[0][:middle], row[0][middle:]]
        if len(row) > 1:
            yield row


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One record a row: one or two texts and a label.

    Args:
      columns: the fields with the texts.
      label: the field with the label.
      names: the labels in the order of their ids; empty where they are ids already.
      classes: how many ids there are.
    """

    columns: tuple[str, ...]
    label: str
    names: tuple[str, ...]
    classes: int

    def texts(self, record: Record) -> list[str]:
        self.label_id(record)
        return [text_of(record, column) for column in self.columns]

    def write(self, records: Encoded, out: Writer) -> None:
        for record, pieces in records:
            out.row(pieces, labels=self.label_id(record))

    def label_id(self, record: Record) -> int:
        found = column_of(record, self.label)
        if self.names:
            if str(found) not in self.names:
                raise DataError(
                    record.where,
                    f"{self.label} {found!r}",
                    f"one of {', '.join(self.names)}",
                    "list every label in objective.labels",
                )
            return self.names.index(str(found))
        try:
            label = int(found)
        except ValueError:
            label = -1
        if not 0 <= label < self.classes or str(label) != str(found).strip():
            raise DataError(
                record.where,
                f"{self.label} {found!r}",
                f"a whole number from 0 to {self.classes - 1}",
                "set objective.classes, or name the labels in objective.labels",
            )
        return label
