"""Rows, made once: records are tokenised, cut and packed, and kept as flat arrays.

An index lies in a folder named by its fingerprint (source, tokenizer, layout), is
memory-mapped, and never changes; where a row stands in training is arithmetic.
"""

import array
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lm import storage
from lm.data.sources.base import Record
from lm.errors import CheckpointError, DataError

FORMAT = 1  # to be raised when the rows of an unchanged config would come out otherwise
BATCH = 512  # records handed to the tokenizer at a time


@dataclasses.dataclass(frozen=True)
class Index:
    """The rows of one source.

    Attributes:
      tokens: (tokens,) token ids of all pieces, one after the other.
      spans: (pieces + 1,) where each piece starts in `tokens`.
      rows: (rows + 1,) where each row starts among the pieces.
      fields: per row: labels, document numbers, as the layout gives them.
      facts: its name (the fingerprint), and records, skipped records, rows and tokens
        as counted in the building.
    """

    tokens: np.ndarray = dataclasses.field(repr=False)
    spans: np.ndarray = dataclasses.field(repr=False)
    rows: np.ndarray = dataclasses.field(repr=False)
    fields: dict[str, np.ndarray] = dataclasses.field(repr=False)
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows) - 1

    def row(self, i: int) -> dict[str, Any]:
        pieces = [
            self.tokens[self.spans[p] : self.spans[p + 1]].astype(np.int32)
            for p in range(self.rows[i], self.rows[i + 1])
        ]
        return {"pieces": pieces, **{k: v[i] for k, v in self.fields.items()}}

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """(V,) how often each token stands in the index."""
        return np.bincount(self.tokens, minlength=vocab_size)


class Writer:
    """Collects pieces and rows of an index that is being built."""

    def __init__(self, folder: Path, vocab_size: int):
        self.dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115 (closed below)
        self._folder = folder
        self._spans, self._rows = array.array("q", [0]), array.array("q", [0])
        self._fields: dict[str, list] = {}

    def row(self, pieces: Iterable[list[int]], **fields: float) -> None:
        """One more row: its pieces of token ids, and its fields."""
        for piece in pieces:
            self._tokens.write(np.asarray(piece, self.dtype).tobytes())
            self._spans.append(self._spans[-1] + len(piece))
        self._rows.append(len(self._spans) - 1)
        for name, value in fields.items():
            self._fields.setdefault(name, []).append(value)

    def close(self) -> None:
        self._tokens.close()

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes what is not tokens; after `close`."""
        facts |= {
            "rows": len(self._rows) - 1,
            "tokens": self._spans[-1],
            "dtype": np.dtype(self.dtype).name,
            "fields": sorted(self._fields),
        }
        np.save(self._folder / "spans.npy", np.frombuffer(self._spans, np.int64))
        np.save(self._folder / "rows.npy", np.frombuffer(self._rows, np.int64))
        for name, values in self._fields.items():
            np.save(self._folder / f"field_{name}.npy", np.asarray(values))
        (self._folder / "facts.json").write_text(json.dumps(facts, indent=1))


Encoded = Iterator[tuple[Record, list[list[int]]]]


@runtime_checkable
class Layout(Protocol):
    """How an objective wants its rows: a frozen dataclass, part of the fingerprint."""

    def texts(self, record: Record) -> list[str]:
        """What is to be tokenised of a record."""

    def write(self, records: Encoded, out: Writer) -> None:
        """Rows out of records and the token ids of their texts."""


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


def fingerprint(source: Any, layout: Layout, codec: Any, rules: dict[str, Any]) -> str:
    """What the rows depend on, as sixteen hexadecimal digits."""
    identity = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "layout": f"{layout!r}",
        "tokenizer": codec.fingerprint,
        **rules,
    }
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(folder: Path) -> Index:
    """The index in `folder`, whole and unchanged since it was built."""
    try:
        storage.verify(folder)
    except CheckpointError as error:
        fix = f"delete {folder}; it is made anew"
        raise DataError(error.where, error.found, error.expected, fix) from error
    facts = json.loads((folder / "facts.json").read_text()) | {"name": folder.name}
    tokens = np.zeros(0, facts["dtype"])
    if facts["tokens"]:
        tokens = np.asarray(np.memmap(folder / "tokens.bin", facts["dtype"], mode="r"))

    def mapped(name: str) -> np.ndarray:
        # A plain array over the mapped file: items of np.memmap are slow to take.
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    return Index(
        tokens=tokens,
        spans=mapped("spans"),
        rows=mapped("rows"),
        fields={name: mapped(f"field_{name}") for name in facts["fields"]},
        facts=facts,
    )


def build(
    folder: Path,
    source: Any,
    layout: Layout,
    codec: Any,
    *,
    skip_bad: bool,
    max_bad: float,
    note: Callable[[str], None],
) -> None:
    """Reads the source once and leaves its index in `folder`, whole or not at all.

    Raises:
      DataError: a record cannot be read, or has no rows; with `skip_bad` only when
        more than a share `max_bad` of the records is bad. Those skipped are listed in
        `bad_records.jsonl` within the folder.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    storage.remove_tree(partial)
    partial.mkdir(parents=True)
    out = Writer(partial, codec.vocab_size)
    bad: list[dict[str, str]] = []
    read = 0
    last_note = time.monotonic()

    def good_records() -> Iterator[tuple[Record, list[str]]]:
        nonlocal read, last_note
        for record in source.records():
            read += 1
            try:
                if isinstance(record, DataError):
                    raise record
                yield record, layout.texts(record)
            except DataError as error:
                if not skip_bad:
                    raise
                bad.append({"where": error.where, "found": error.found})
            if time.monotonic() - last_note > 10:
                note(f"indexing: {read:,} records")
                last_note = time.monotonic()

    def encoded() -> Encoded:
        records = good_records()
        while chunk := list(itertools.islice(records, BATCH)):
            texts = [text for _, texts in chunk for text in texts]
            ids = iter(codec.encode_batch(texts))
            for record, texts in chunk:
                yield record, [next(ids) for _ in texts]

    with contextlib.closing(out):
        layout.write(encoded(), out)
    if bad and len(bad) > max_bad * read:
        raise DataError(
            bad[0]["where"],
            f"{len(bad)} bad records of {read}, the first: {bad[0]['found']}",
            f"at most a share of {max_bad} (data.max_bad)",
            "repair the source, or raise data.max_bad",
        )
    out.finish({"records": read, "skipped": len(bad)})
    if bad:
        lines = "".join(json.dumps(entry) + "\n" for entry in bad)
        (partial / "bad_records.jsonl").write_text(lines)
        note(f"skipped {len(bad)} bad records: {folder / 'bad_records.jsonl'}")
    storage.commit(partial, folder)
