"""Rows, made once: records are tokenised, cut and packed, and kept as flat arrays.

An index lies in a folder named by its fingerprint (source, tokenizer, layout), is
memory-mapped, and never changes; where a row stands in training is arithmetic.
"""

import array
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lm.data.sources.base import Record
from lm.errors import CheckpointError, DataError
from lm.host import storage

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
        as counted in the building, and what the layout counted.
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
    """Collects pieces and rows of an index that is being built.

    Attributes:
      record: the number, among all of the source, of the record last handed out.
      counts: what a layout wants told of the building; it goes into the facts.
    """

    def __init__(self, folder: Path, vocab_size: int):
        self.dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115 (closed below)
        self._folder = folder
        self._spans, self._rows = array.array("q", [0]), array.array("q", [0])
        self._fields: dict[str, list] = {}
        self.record = -1
        self.counts: collections.Counter[str] = collections.Counter()

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
        facts |= self.counts | {
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

    def good_records() -> Iterator[tuple[int, Record, list[str]]]:
        nonlocal read, last_note
        for record in source.records():
            read += 1
            try:
                if isinstance(record, DataError):
                    raise record
                yield read - 1, record, layout.texts(record)
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
            texts = [text for _, _, texts in chunk for text in texts]
            ids = iter(codec.encode_batch(texts))
            for out.record, record, texts in chunk:
                pieces = [next(ids) for _ in texts]
                check_ids(pieces, record, codec.vocab_size)
                yield record, pieces

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
    for what, count in out.counts.items():
        note(f"{what}: {count:,} of {read:,} records")
    storage.commit(partial, folder)


def check_ids(pieces: list[list[int]], record: Record, vocab_size: int) -> None:
    """Raises a DataError for a token id that the vocabulary does not have."""
    for piece in pieces:
        if piece and (min(piece) < 0 or max(piece) >= vocab_size):
            wrong = next(id for id in piece if not 0 <= id < vocab_size)
            raise DataError(
                record.where,
                f"a text with token id {wrong}",
                f"ids from 0 to {vocab_size - 1}, the tokenizer's vocabulary",
                "the tokenizer gives ids that it does not have: make it again",
            )
