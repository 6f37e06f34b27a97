"""Layouts: which texts of a record are tokenised, and how they are cut into rows.

A layout is a frozen dataclass; its fields are part of the index's fingerprint.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.labels import Labels, number_of
from lm.data.packing import FirstFit
from lm.data.sources.base import Record, column_of
from lm.errors import ConfigError, DataError

# How a record is treated that does not fit its row, or that has no text.
TooLong = Literal["error", "cut", "window", "skip"]


def text_of(record: Record, column: str) -> str:
    """Returns the text of a field; DataError where it holds something else."""
    text = column_of(record, column)
    if not isinstance(text, str):
        raise DataError(record.where, f"{column} {text!r:.80}", "a text")
    return text


def list_of(record: Record, column: str) -> tuple[Any, ...]:
    """Returns the list of a field, such as words or tags; one value is one item."""
    found = column_of(record, column)
    return found if isinstance(found, tuple) else (found,)


def texts_of(record: Record, column: str) -> tuple[str, ...]:
    """Returns the texts of a field that holds one or a list of them; at least one.

    Raises:
      DataError: the list is empty, or holds something else than texts.
    """
    found = list_of(record, column)
    if not found or not all(isinstance(text, str) for text in found):
        raise DataError(record.where, f"{column} {found!r:.80}", "one text or more")
    return found


def check_length(length: int, least: int, what: str, field: str = "seq_len") -> None:
    """Raises a ConfigError for rows too short to hold anything.

    Args:
      length: tokens that a row holds.
      least: the fewest that make sense.
      what: what these are, for the error.
    """
    if length < least:
        raise ConfigError(field, str(length), f"at least {least}: {what}")


def check_too_long(word: str) -> None:
    """Raises a ConfigError for windows, where an objective reads a record at once."""
    if word == "window":
        raise ConfigError(
            "objective.too_long",
            "'window'",
            "error, cut or skip, since this objective reads a record in one row",
        )


@dataclasses.dataclass(frozen=True)
class Documents:
    """Cuts texts into pieces that fit a row; with packing a row holds several.

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

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def __post_init__(self):
        what = f"{self.overhead} special tokens and one of a text"
        check_length(self.length, self.overhead + 1, what)

    def write(self, records: Encoded, out: Writer) -> None:
        room = self.length - self.overhead
        rows = FirstFit((self.length,), self.overhead if self.pack else self.length)
        for _, (tokens,) in records:
            for start in range(0, len(tokens), room):
                piece = tokens[start : start + room]
                item = piece, out.record
                for row in rows.add((len(piece) + self.overhead,), item):
                    write_row(row, self.pack, out)
        for row in rows.rest():
            write_row(row, self.pack, out)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions the piece of each row needs, without packing."""
        return ((index.row_lengths + self.overhead, self.length),)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Makes a row of each record, or several: one or two texts, and their label.

    A row has the values `labels` and `weight` where the record has them, and `cut`, how
    many tokens of the record's texts its example will lack. With `too_long="cut"` the
    index keeps whole texts, which are cut when an example is made of them. With
    "window" a record that does not fit becomes rows of the same label: the longer text
    in windows that overlap as little as their equal length allows, each beside the
    whole of the other text. Records that are cut, divided or left out are counted.

    Args:
      columns: the fields with the texts.
      labels: how the label is read; None: records have none.
      weight: the field with the weight of a record in the loss; None: all are equal.
      length: tokens that a row holds, special tokens included.
      overhead: special tokens of a row.
      too_long: how a record that does not fit is treated. A record without text is
        refused by "error", left out by "skip", and kept otherwise.
      least: tokens of its texts that a row needs.
    """

    columns: tuple[str, ...]
    labels: Labels | None = None
    weight: str | None = None
    length: int = 1 << 24
    overhead: int = 0
    too_long: TooLong = "cut"
    least: int = 0

    def __post_init__(self):
        several = f"{len(self.columns)} texts, a token each"
        texts = several if len(self.columns) > 1 else "a token of the text"
        what = f"{self.overhead} special tokens and {texts}"
        check_length(self.length, self.overhead + len(self.columns), what)

    def texts(self, record: Record) -> list[str]:
        self._values(record)
        texts = [text_of(record, column) for column in self.columns]
        kept = self.too_long in ("cut", "window")
        refused = self.too_long == "error" or (self.least and kept)
        if refused and not any(map(str.strip, texts)):
            raise self._blank(record)
        return texts

    def write(self, records: Encoded, out: Writer) -> None:
        room = self.length - self.overhead
        for record, pieces in records:
            size = sum(map(len, pieces))
            if size == 0 and self.too_long in ("error", "skip"):
                if self.too_long == "error":
                    raise self._blank(record)
                out.counts["blank_skip"] += 1
                continue
            if size < self.least:
                raise self._blank(record)
            rows, cut = [pieces], 0
            if size > room:
                if self.too_long == "error":
                    raise self._long(record, size, room)
                out.counts[f"too_long_{self.too_long}"] += 1
                if self.too_long == "skip":
                    continue
                if self.too_long == "cut":
                    cut = size - room
                else:
                    rows = self._windows(record, pieces, room)
            for row in rows:
                out.row(row, cut=cut, record=out.record, **self._values(record))

    def _values(self, record: Record) -> dict[str, Any]:
        """Returns the label and the weight of a record, where it has them."""
        values: dict[str, Any] = {}
        if self.labels is not None:
            values["labels"] = self.labels.of(record)
        if self.weight is not None:
            values["weight"] = number_of(
                record, self.weight, (0, 1e6), "objective.weight"
            )
        return values

    def _windows(
        self, record: Record, pieces: list[list[int]], room: int
    ) -> list[list[list[int]]]:
        """Divides the longest text into windows of equal length."""
        longest = max(range(len(pieces)), key=lambda n: len(pieces[n]))
        tokens = pieces[longest]
        most = room - sum(map(len, pieces)) + len(tokens)
        if 2 * most < room:  # The other text leaves too little for a window.
            raise self._long(record, sum(map(len, pieces)), room)
        count = -(-len(tokens) // most)
        starts = [n * (len(tokens) - most) // (count - 1) for n in range(count)]
        windows = [tokens[start : start + most] for start in starts]
        return [[*pieces[:longest], w, *pieces[longest + 1 :]] for w in windows]

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions each row needs."""
        return ((index.row_lengths + self.overhead, self.length),)

    def _blank(self, record: Record) -> DataError:
        return DataError(
            record.where,
            f"no text in {' and '.join(self.columns)}",
            "a token at least",
            "complete or remove it, or set objective.too_long=skip or data.on_bad=skip",
        )

    def _long(self, record: Record, size: int, room: int) -> DataError:
        return DataError(
            record.where,
            f"{size} tokens of {' and '.join(self.columns)}",
            f"at most {room}",
            "raise seq_len, or set objective.too_long=cut, window or skip"
            if self.too_long == "error"
            else "raise seq_len, or set objective.too_long=cut or skip",
        )


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Makes rows of source and target for encoder-decoders, one or several pairs each.

    A row's pieces are source, target, source, target, ...

    Args:
      source_length, target_length: tokens that a row holds on each side, special
        tokens included.
      overhead: special tokens that each piece gets later.
      pack: whether a row may hold several pairs.
      source, target: the fields of the record that hold the texts.
      prefix: text put before each source.
      join: text put between the texts of a source that is a list.
      targets: whether the first text of a target that is a list is used, or each as a
        pair of its own.
      too_long: how a pair is treated that does not fit a row of its own. A pair with
        a blank text is left out by "skip", and refused otherwise.
    """

    source_length: int
    target_length: int
    overhead: int
    pack: bool
    source: str = "source"
    target: str = "target"
    prefix: str = ""
    join: str = " "
    targets: Literal["first", "each"] = "first"
    too_long: TooLong = "error"

    def __post_init__(self):
        check_too_long(self.too_long)
        what = f"{self.overhead} special token and one of the text"
        least = self.overhead + 1
        check_length(self.source_length, least, what, "objective.source_len")
        check_length(self.target_length, least, what)

    def texts(self, record: Record) -> list[str]:
        source = self.join.join(texts_of(record, self.source))
        targets = texts_of(record, self.target)
        if self.targets == "first":
            targets = targets[:1]
        columns = [self.source, *[self.target] * len(targets)]
        for column, text in zip(columns, [source, *targets]):
            if not text.strip():
                if self.too_long == "skip":
                    return []
                raise DataError(
                    record.where,
                    f"an empty {column}",
                    "a text in both columns",
                    "complete or remove it, or set objective.too_long=skip or "
                    "data.on_bad=skip",
                )
        return [self.prefix + source, *targets]

    def write(self, records: Encoded, out: Writer) -> None:
        room = (self.source_length - self.overhead, self.target_length - self.overhead)
        rows = FirstFit((self.source_length, self.target_length), self.overhead)
        for record, pair in self._pairs(records, out):
            if any(len(piece) > most for piece, most in zip(pair, room)):
                if self.too_long == "error":
                    raise self._too_long(record, pair, room)
                out.counts[f"too_long_{self.too_long}"] += 1
                if self.too_long == "skip":
                    continue
                pair = [piece[:most] for piece, most in zip(pair, room)]
            if not self.pack:
                out.row(pair, record=out.record)
                continue
            sizes = tuple(len(piece) + self.overhead for piece in pair)
            for row in rows.add(sizes, (pair, out.record)):
                self._write(row, out)
        for row in rows.rest():
            self._write(row, out)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions each pair needs on both sides, without packing."""
        source, target = index.piece_lengths.reshape(-1, 2).T + self.overhead
        return (source, self.source_length), (target, self.target_length)

    def _pairs(
        self, records: Encoded, out: Writer
    ) -> Iterator[tuple[Record, list[list[int]]]]:
        """Yields source and target of each pair, and counts blank records."""
        for record, pieces in records:
            if not pieces:
                out.counts["blank_skip"] += 1
            for target in pieces[1:]:
                yield record, [pieces[0], target]

    def _write(self, row: list[tuple[list[list[int]], int]], out: Writer) -> None:
        pairs, records = zip(*row)
        out.row([piece for pair in pairs for piece in pair], record=[*records])

    def _too_long(
        self, record: Record, pair: list[list[int]], room: tuple[int, int]
    ) -> DataError:
        return DataError(
            record.where,
            f"{len(pair[0])} tokens of {self.source} and {len(pair[1])} of "
            f"{self.target}",
            f"at most {room[0]} and {room[1]}",
            "raise objective.source_len or seq_len, or set objective.too_long=cut or "
            "skip",
        )


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Cuts texts into pieces of `length`, which are corrupted or split when drawn.

    The last piece of a text is shorter; pieces of a single token, of which nothing can
    be left out, are skipped and counted. With packing a row holds pieces of several
    texts, as many as fit however they are drawn; each stays a segment of its own.

    Args:
      length: tokens of a piece.
      capacity: positions of a row on each of its sides.
      forms: the ways in which a piece may be corrupted or split; `form.lengths(n)` is
        how many positions a piece of n tokens needs at most on each side.
      pack: whether a row may hold several pieces.
      end: a token put after each text, or None.
      column: the field of the record that holds the text.
    """

    length: int
    capacity: tuple[int, ...]
    forms: tuple[Any, ...]
    pack: bool
    end: int | None = None
    column: str = "text"

    def __post_init__(self):
        check_length(self.length, 2, "a token to predict, and one before it")

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        rows = FirstFit(self.capacity, 1 if self.pack else max(self.capacity))
        for _, (tokens,) in records:
            if tokens and self.end is not None:
                tokens = [*tokens, self.end]
            for start in range(0, len(tokens), self.length):
                piece = tokens[start : start + self.length]
                if len(piece) == 1:
                    out.counts["single_token_skip"] += 1
                    continue
                needs = zip(*(form.lengths(len(piece)) for form in self.forms))
                for row in rows.add(tuple(map(max, needs)), (piece, out.record)):
                    write_row(row, self.pack, out)
        for row in rows.rest():
            write_row(row, self.pack, out)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions the piece of each row needs at most."""
        tokens = range(2, int(index.row_lengths.max(initial=2)) + 1)
        most = [
            [max(side) for side in zip(*(form.lengths(n) for form in self.forms))]
            for n in tokens
        ]
        needed = np.asarray(most)[index.row_lengths - 2].T
        return tuple(zip(needed, self.capacity))


def write_row(row: list[tuple[list[int], int]], pack: bool, out: Writer) -> None:
    """Writes a row of (piece, number of its record).

    The field `record` is a list where a row may hold pieces of several records.
    """
    pieces, records = zip(*row)
    out.row(pieces, record=[*records] if pack else records[0])
