"""Rows of several texts, each read by itself: what an encoder of texts reads."""

import dataclasses
import hashlib
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Shaped

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.labels import Labels
from lm.data.layouts import check_length, text_of
from lm.data.sources.base import Record
from lm.data.transforms import Example, padded_length
from lm.errors import DataError


@dataclasses.dataclass(frozen=True)
class Texts:
    """Makes a row of each record: its texts, each cut by itself.

    A row has the value `labels`, where records have one, and `cut`, how many tokens of
    its texts are left out. Records that are cut or left out are counted.

    Args:
      columns: the fields with the texts; a field may stand there twice.
      labels: how the label is read; None: records have none.
      length: tokens of a text, special tokens included.
      overhead: special tokens that each text gets later.
      too_long: how a record is treated of which a text does not fit. A record with a
        blank text is refused by "error", left out by "skip", and kept by "cut", which
        refuses a text without a token where no special token is added.
    """

    columns: tuple[str, ...]
    labels: Labels | None = None
    length: int = 1 << 24
    overhead: int = 0
    too_long: Literal["error", "cut", "skip"] = "cut"

    def __post_init__(self):
        what = f"{self.overhead} special tokens and one of the text"
        check_length(self.length, self.overhead + 1, what)

    def texts(self, record: Record) -> list[str]:
        self._values(record)
        return [text_of(record, column) for column in self.columns]

    def write(self, records: Encoded, out: Writer) -> None:
        room = self.length - self.overhead
        for record, pieces in records:
            if not all(pieces) and (self.too_long != "cut" or not self.overhead):
                if self.too_long != "skip":
                    raise self._blank(record, pieces)
                out.counts["blank_skip"] += 1
                continue
            cut = sum(max(len(piece) - room, 0) for piece in pieces)
            if cut:
                if self.too_long == "error":
                    raise self._long(record, pieces, room)
                out.counts[f"too_long_{self.too_long}"] += 1
                if self.too_long == "skip":
                    continue
            kept = [piece[:room] for piece in pieces]
            out.row(kept, cut=cut, record=out.record, **self._values(record))

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions each row needs."""
        count = len(self.columns)
        longest = index.piece_lengths.reshape(-1, count).max(1, initial=0)
        return ((count * (longest + self.overhead), count * self.length),)

    def _values(self, record: Record) -> dict[str, Any]:
        """Returns the label of a record, where it has one."""
        return {} if self.labels is None else {"labels": self.labels.of(record)}

    def _blank(self, record: Record, pieces: list[list[int]]) -> DataError:
        names = [name for name, piece in zip(self.columns, pieces) if not piece]
        return DataError(
            record.where,
            f"no text in {' and '.join(dict.fromkeys(names))}",
            "a token at least",
            "complete or remove it, or set objective.too_long=skip",
        )

    def _long(self, record: Record, pieces: list[list[int]], room: int) -> DataError:
        size, name = max((len(p), name) for p, name in zip(pieces, self.columns))
        return DataError(
            record.where,
            f"{size} tokens of {name}",
            f"at most {room}",
            "raise seq_len, or set objective.too_long=cut or skip",
        )


@dataclasses.dataclass(frozen=True)
class Interleave:
    """Puts K texts into one row: the first tokens of all, the second ones, and so on.

    So a row that is longer or shorter at its end has more or less padding after each
    text. `apart` separates them again.

    Adds `inputs`, `positions`, `segment_ids`, `token_types`, each (length of row,).

    Args:
      before, after: special tokens around each text.
      length: positions of a text at most.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    length: int
    pad_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        count = len(example["pieces"])
        row = padded_length(example, count * self.length)
        inputs = np.full(row, self.pad_id, np.int32)
        segments = np.zeros(row, np.int32)
        for k, piece in enumerate(example["pieces"]):
            text = [*self.before, *piece.tolist(), *self.after]
            places = slice(k, k + count * len(text), count)
            inputs[places] = text
            segments[places] = 1
        return example | {
            "inputs": inputs,
            "positions": np.arange(row, dtype=np.int32) // count * segments,
            "segment_ids": segments,
            "token_types": np.zeros_like(inputs),
        }


def apart(array: Shaped[Array, "B T"], count: int) -> Shaped[Array, "N S"]:
    """Returns what a row has of each of its texts, as a row of its own.

    The texts of a row become neighbours: N = B x count, and S = T // count.
    """
    rows, length = array.shape
    each = array[:, : length // count * count].reshape(rows, -1, count)
    return each.swapaxes(1, 2).reshape(rows * count, -1)


@dataclasses.dataclass(frozen=True)
class TextKeys:
    """Adds `text_keys` (K, 2): 64 bits of the tokens of each text of a row.

    Texts of equal tokens have equal keys, and others differ (but for one pair in
    2 ** 64), so that a device can tell duplicates apart.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        hashed = b"".join(
            hashlib.blake2b(piece.tobytes(), digest_size=8).digest()
            for piece in example["pieces"]
        )
        return example | {"text_keys": np.frombuffer(hashed, "<i4").reshape(-1, 2)}


@dataclasses.dataclass(frozen=True)
class Score:
    """Adds `label_weights`, which is 1, and `labels`, where the row has one."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        example = example | {"label_weights": np.float32(1)}
        if "labels" in example:
            example["labels"] = np.float32(example["labels"])
        return example
