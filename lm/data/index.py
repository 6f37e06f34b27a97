"""The index of a source: its rows of token ids, built once and memory-mapped.

Records are tokenised, cut and packed, and kept as flat files of numbers in a folder
that is named by its fingerprint (source, tokenizer, layout). An index never changes;
which row an example is made of is arithmetic (`lm/data/pipeline.py`).
"""

import array
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lm.data.sources.base import Record
from lm.errors import CheckpointError, DataError, StorageError
from lm.host import storage
from lm.tokenizers.base import Codec

FORMAT = 2  # Raise it where the files, or the rows of an unchanged config, differ.
BATCH = 512  # records handed to the tokenizer at a time
CHUNK = 1 << 16  # numbers of a column held in memory before they are written
Value = float | Sequence[float] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Index:
    """Rows of one source, memory-mapped.

    Attributes:
      tokens: (tokens,) token ids of all pieces, one after the other.
      spans: (pieces + 1,) where each piece starts in `tokens`.
      rows: (rows + 1,) where each row starts among the pieces.
      fields: name -> (rows,), one number per row. `record` is the number of the row's
        record among all records of the source, where a row is made of one record.
      facts: `name` (the fingerprint), and what was counted while the index was built.
      arrays: name -> the arrays of all rows, of any length. `record` stands here where
        a row may hold several records: one number for each of its texts.
      digests: (records with text,) 64 bits of a hash of each record's texts.
    """

    tokens: np.ndarray = dataclasses.field(repr=False)
    spans: np.ndarray = dataclasses.field(repr=False)
    rows: np.ndarray = dataclasses.field(repr=False)
    fields: dict[str, np.ndarray] = dataclasses.field(repr=False)
    facts: dict[str, Any]
    arrays: "dict[str, Ragged]" = dataclasses.field(default_factory=dict, repr=False)
    digests: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows) - 1

    def row(self, i: int) -> dict[str, Any]:
        """Returns the `pieces` of row i (int32 token ids), its fields and arrays."""
        pieces = [
            self.tokens[self.spans[p] : self.spans[p + 1]].astype(np.int32)
            for p in range(self.rows[i], self.rows[i + 1])
        ]
        return {
            "pieces": pieces,
            **{name: column[i] for name, column in self.fields.items()},
            **{name: ragged[i] for name, ragged in self.arrays.items()},
        }

    @functools.cached_property
    def piece_lengths(self) -> np.ndarray:
        """The tokens of each piece, (pieces,)."""
        return np.diff(self.spans)

    @functools.cached_property
    def row_lengths(self) -> np.ndarray:
        """The tokens of each row, (rows,)."""
        return np.diff(self.spans[self.rows])

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Counts how often each token occurs in the index, (V,)."""
        return np.bincount(self.tokens, minlength=vocab_size)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """An array for each row, of different lengths.

    Args:
      values: (items, ...) the arrays of all rows, one after the other.
      ends: (rows,) where the array of each row ends in `values`.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    ends: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]


class Column:
    """Numbers of one type, appended to a file in chunks."""

    def __init__(self, path: Path, typecode: str, first: Sequence[int] = ()):
        self.typecode = typecode
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self._waiting: Any = array.array(typecode, first)
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._waiting)

    def append(self, value: Value) -> None:
        """Appends a number; TypeError for a list or an array."""
        self._waiting.append(value)
        if len(self._waiting) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._waiting.tofile(self._file)
        self._written += len(self._waiting)
        del self._waiting[:]

    def close(self) -> None:
        with self._file:
            self._flush()


class Arrays:
    """Arrays of all rows under one name, appended to two files."""

    def __init__(self, folder: Path, name: str, first: np.ndarray):
        self.name, self.dtype, self.shape = name, first.dtype, first.shape[1:]
        self._file = open(folder / f"array_{name}.bin", "wb")  # noqa: SIM115
        self._ends = Column(folder / f"array_{name}_ends.bin", "q")
        self._items = 0

    def append(self, value: Value) -> None:
        """Appends the array of a row.

        Raises:
          ValueError: the array is of another type or shape than those before.
        """
        found = as_array(value)
        if found.dtype != self.dtype or found.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name}: an array of {found.dtype} {found.shape[1:]}, others of "
                f"{self.dtype} {self.shape}"
            )
        self._file.write(found.tobytes())
        self._items += len(found)
        self._ends.append(self._items)

    def __len__(self) -> int:
        return len(self._ends)

    def close(self) -> None:
        with self._file:
            self._ends.close()


@runtime_checkable
class Writer(Protocol):
    """Takes the rows of a layout.

    Attributes:
      record: the number, among all of the source, of the record last handed out.
      counts: what a layout counts, such as texts that were cut.
    """

    record: int
    counts: collections.Counter[str]

    def row(self, pieces: Iterable[list[int]], **values: Value) -> None:
        """Adds a row.

        Args:
          pieces: lists of token ids.
          values: for each name a number, or an array whose first axis may have any
            length; every row has the same names, and each the same kind of value. A
            list becomes an array of whole numbers.
        """


class FileWriter:
    """Collects the rows of an index that is being built; memory stays bounded.

    Attributes:
      record, counts: see `Writer`; the counts become part of the facts.
    """

    def __init__(self, folder: Path, vocab_size: int):
        self._typecode = "H" if vocab_size <= 1 << 16 else "I"
        self._folder = folder
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115
        self._spans = Column(folder / "spans.bin", "q", [0])
        self._rows = Column(folder / "rows.bin", "q", [0])
        self._digests = open(folder / "digests.bin", "wb")  # noqa: SIM115
        self._columns: dict[str, Column | Arrays] = {}
        self._end = self._pieces = 0
        self.record = -1
        self.counts: collections.Counter[str] = collections.Counter()

    def row(self, pieces: Iterable[list[int]], **values: Value) -> None:
        """See `Writer`."""
        for piece in pieces:
            # numpy converts a list at half the speed.
            self._tokens.write(array.array(self._typecode, piece))
            self._end += len(piece)
            self._spans.append(self._end)
            self._pieces += 1
        self._rows.append(self._pieces)
        if len(self._rows) == 2:
            self._columns = {k: self._open(k, v) for k, v in values.items()}
        if values.keys() != self._columns.keys():
            raise ValueError(f"a row with {[*values]}, others with {[*self._columns]}")
        for name, value in values.items():
            self._columns[name].append(value)

    def _open(self, name: str, value: Value) -> "Column | Arrays":
        if not is_number(value):
            return Arrays(self._folder, name, as_array(value))
        whole = isinstance(value, int | np.integer)
        return Column(self._folder / f"field_{name}.bin", "q" if whole else "d")

    def digest(self, texts: Sequence[str]) -> None:
        """Appends a hash of a record's texts, little-endian in the file."""
        text = "\0".join(texts).encode(errors="surrogatepass")
        self._digests.write(hashlib.blake2b(text, digest_size=8).digest())

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for file in (self._tokens, self._spans, self._rows, self._digests):
                stack.callback(file.close)
            for column in self._columns.values():
                stack.callback(column.close)

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes `facts.json`; after `close`."""
        columns = self._columns.items()
        arrays = {n: c for n, c in columns if isinstance(c, Arrays)}
        fields = {n: c for n, c in columns if isinstance(c, Column)}
        facts |= self.counts | {
            "counted": sorted(self.counts),
            "rows": len(self._rows) - 1,
            "tokens": self._end,
            "dtype": np.dtype(self._typecode).name,
            "fields": {n: c.typecode for n, c in sorted(fields.items())},
            "arrays": {
                n: {"dtype": c.dtype.str, "shape": list(c.shape)}
                for n, c in sorted(arrays.items())
            },
        }
        (self._folder / "facts.json").write_text(json.dumps(facts, indent=1))


class Rows:
    """Keeps rows in memory, as `Index.row` gives them.

    Attributes:
      record, counts: see `Writer`.
      rows: (number of the record, `pieces` and values) of each row.
    """

    def __init__(self) -> None:
        self.record = -1
        self.counts: collections.Counter[str] = collections.Counter()
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def row(self, pieces: Iterable[list[int]], **values: Value) -> None:
        """See `Writer`."""
        several = {k: as_array(v) for k, v in values.items() if not is_number(v)}
        made = {"pieces": [np.asarray(piece, np.int32) for piece in pieces]}
        self.rows.append((self.record, made | values | several))


def is_number(value: Value) -> bool:
    """Tells whether a value of a row is a number, and no list or array."""
    return not isinstance(value, list | tuple | np.ndarray)


def as_array(value: Value) -> np.ndarray:
    """Returns the value as an array; lists hold whole numbers, empty ones too."""
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(value, np.int64)


Encoded = Iterator[tuple[Record, list[list[int]]]]


@runtime_checkable
class Layout(Protocol):
    """Turns records into rows: a frozen dataclass, part of the index's fingerprint."""

    def texts(self, record: Record) -> list[str]:
        """Returns the texts of a record that are tokenised."""

    def write(self, records: Encoded, out: Writer) -> None:
        """Makes rows of the records and of the token ids of their texts.

        Every row has the value `record`: `out.record` when its texts were read, or a
        list of such numbers where a row may hold several records.
        """


def fingerprint(
    source: Any, layout: Layout, codec: Codec, rules: dict[str, Any]
) -> str:
    """Returns a hash of all that the rows depend on, as 16 hexadecimal digits."""
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
    """Opens the index in `folder`, verified to be as it was built under this name.

    Raises:
      DataError: a file is missing or changed, or the folder is that of another index.
    """
    try:
        storage.verify(folder, index=folder.name)
    except CheckpointError as error:
        fix = f"delete {folder}; it is made anew"
        raise DataError(error.where, error.found, error.expected, fix) from error
    facts = json.loads((folder / "facts.json").read_text()) | {"name": folder.name}

    def mapped(name: str, dtype: Any, shape: Sequence[int] = ()) -> np.ndarray:
        # A plain array over the mapped file: items of np.memmap are slow to take.
        path = folder / f"{name}.bin"
        if not path.stat().st_size:  # which cannot be mapped
            return np.zeros((0, *shape), dtype)
        return np.asarray(np.memmap(path, dtype, mode="r")).reshape(-1, *shape)

    def ragged(name: str, dtype: str, shape: list[int]) -> Ragged:
        ends = mapped(f"array_{name}_ends", np.int64)
        return Ragged(mapped(f"array_{name}", dtype, shape), ends)

    return Index(
        tokens=mapped("tokens", facts["dtype"]),
        spans=mapped("spans", np.int64),
        rows=mapped("rows", np.int64),
        fields={
            name: mapped(f"field_{name}", np.dtype(typecode))
            for name, typecode in facts["fields"].items()
        },
        facts=facts,
        arrays={name: ragged(name, **kind) for name, kind in facts["arrays"].items()},
        digests=mapped("digests", "<u8"),
    )


def build(
    folder: Path,
    source: Any,
    layout: Layout,
    codec: Codec,
    *,
    skip_bad: bool,
    max_bad: float,
    note: Callable[[str], None],
) -> None:
    """Reads the source once and leaves its index in `folder`, whole or not at all.

    The facts hold `records`, `skipped` (bad records), `blank` (records without text),
    `encoded` (token ids of all texts), `unknown` (those of them that are the unknown
    token), `rows`, `tokens`, and what the layout counts.

    Raises:
      DataError: a record cannot be read, or has no rows; with `skip_bad` only when
        more than a share `max_bad` of the records is bad. Those skipped are listed in
        `bad_records.jsonl` within the folder.
      StorageError: the disk is full; what was written is removed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with storage.refusing(partial):
            storage.remove_tree(partial)
            partial.mkdir(parents=True)
            _fill(partial, folder, source, layout, codec, skip_bad, max_bad, note)
        storage.commit(partial, folder, index=folder.name)
    except StorageError:
        with contextlib.suppress(StorageError):
            storage.remove_tree(partial)
        raise


def _fill(
    partial: Path,
    folder: Path,
    source: Any,
    layout: Layout,
    codec: Codec,
    skip_bad: bool,
    max_bad: float,
    note: Callable[[str], None],
) -> None:
    """Writes the files of an index into `partial`."""
    out = FileWriter(partial, codec.vocab_size)
    unk_id = codec.unk_id
    bad: list[dict[str, str]] = []
    read = blank = encoded_tokens = unknown = 0
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
        nonlocal blank, encoded_tokens, unknown
        records = good_records()
        while chunk := list(itertools.islice(records, BATCH)):
            texts = [text for _, _, texts in chunk for text in texts]
            ids = codec.encode_batch(texts)
            # Checking and counting one array is cheaper than going through each list.
            all_ids = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
            encoded_tokens += len(all_ids)
            if unk_id is not None:
                unknown += int(np.count_nonzero(all_ids == unk_id))
            wrong = len(all_ids) and (
                all_ids.min() < 0 or all_ids.max() >= codec.vocab_size
            )
            remaining = iter(ids)
            for out.record, record, texts in chunk:
                joined = "".join(texts)
                if joined and not joined.isspace():
                    out.digest(texts)
                else:
                    blank += 1
                pieces = [next(remaining) for _ in texts]
                if wrong:
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
    out.finish(
        {
            "records": read,
            "skipped": len(bad),
            "blank": blank,
            "encoded": encoded_tokens,
            "unknown": unknown,
        }
    )
    if bad:
        lines = "".join(json.dumps(entry) + "\n" for entry in bad)
        (partial / "bad_records.jsonl").write_text(lines)
        note(f"skipped {len(bad)} bad records: {folder / 'bad_records.jsonl'}")
    for what, count in out.counts.items():
        note(f"{what}: {count:,} of {read:,} records")


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
