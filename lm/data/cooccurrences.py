"""Counts how often words stand near each other, in bounded memory (GloVe).

Pennington et al. 2014. The counts are the rows of an index: they are made once, as the
index is built, and training reads them like any other rows.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm.data.index import Encoded, Writer
from lm.data.layouts import text_of
from lm.data.sources.base import Record
from lm.data.transforms import Example, filled

MEMORY = (
    1 << 24
)  # entries of 16 bytes held in memory, and as many while they are sorted
TEXT = 1 << 20  # words whose neighbours are listed at a time
# Odd factors of a permutation of the 64-bit numbers, and their inverses modulo 2**64.
FACTORS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)
INVERSES = tuple(pow(factor, -1, 1 << 64) for factor in FACTORS)
HALF = np.uint64(32)

Entries = tuple[np.ndarray, np.ndarray]  # places (n,), sums (n,)


@dataclasses.dataclass(frozen=True)
class Cooccurrences:
    """Rows of `length` pairs of words with their counts, all pairs in random order.

    Two words that stand d <= `window` words apart in a text count 1 / d, on both sides:
    the counts are symmetric. A row has two pieces, the words and their neighbours, and
    the array `near` of the counts.

    A pair's place in the order is a hash of it, by which equal pairs come together;
    thus one sort adds up the counts and shuffles them.

    Args:
      length: pairs of a row.
      window: the most words between which a pair counts, plus one.
      vocab_size: V; a pair is the number V i + j.
      dropped: ids that are left out of the texts, such as that of the unknown token.
      column: the field of the record that holds the text.
      memory: entries held in memory; sorted runs beyond it lie in temporary files. The
        counts are the same, up to the rounding of their sums.
    """

    length: int
    window: int
    vocab_size: int
    dropped: tuple[int, ...]
    column: str = "text"
    memory: int = dataclasses.field(default=MEMORY, repr=False)

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        with tempfile.TemporaryDirectory() as folder:
            runs = Runs(Path(folder), self.memory)
            for words, owner in self._blocks(records, out):
                for distance in range(1, min(self.window, len(words) - 1) + 1):
                    near = owner[distance:] == owner[:-distance]
                    one, other = words[distance:][near], words[:-distance][near]
                    weight = np.full(2 * len(one), 1 / distance)
                    keys = np.concatenate(
                        [self._key(one, other), self._key(other, one)]
                    )
                    runs.add(place_of(keys), weight)
            rest: Entries = np.zeros(0, np.uint64), np.zeros(0)
            for part in runs.merged():
                rest = tuple(map(np.concatenate, zip(rest, part)))  # type: ignore[assignment]
                whole = len(rest[0]) // self.length * self.length
                self._rows(rest[0][:whole], rest[1][:whole], out)
                rest = rest[0][whole:], rest[1][whole:]
            self._rows(*rest, out)

    def _blocks(
        self, records: Encoded, out: Writer
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the words of many texts together, and which text each is of."""
        texts: list[list[int]] = []
        size = 0
        for _, (tokens,) in records:
            kept = [token for token in tokens if token not in self.dropped]
            out.counts["unknown texts_left out"] += not kept
            texts.append(kept)
            size += len(kept)
            if size >= TEXT:
                yield _joined(texts)
                texts, size = [], 0
        if size:
            yield _joined(texts)

    def _key(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one.astype(np.uint64) * np.uint64(self.vocab_size) + other.astype(
            np.uint64
        )

    def _rows(self, places: np.ndarray, sums: np.ndarray, out: Writer) -> None:
        one, other = np.divmod(key_of(places), np.uint64(self.vocab_size))
        for start in range(0, len(places), self.length):
            part = slice(start, start + self.length)
            pieces = [one[part].tolist(), other[part].tolist()]
            out.row(pieces, near=sums[part].astype(np.float32), record=[])


def _joined(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    words = np.concatenate([np.asarray(text, np.int64) for text in texts])
    return words, np.repeat(np.arange(len(texts)), [len(text) for text in texts])


def place_of(keys: np.ndarray) -> np.ndarray:
    """Permutes the 64-bit numbers, so that sorting by the result shuffles."""
    mixed = keys * np.uint64(FACTORS[0])
    mixed ^= mixed >> HALF
    return mixed * np.uint64(FACTORS[1])


def key_of(places: np.ndarray) -> np.ndarray:
    """Returns the numbers that `place_of` permuted."""
    mixed = places * np.uint64(INVERSES[1])
    mixed ^= mixed >> HALF
    return mixed * np.uint64(INVERSES[0])


class Runs:
    """Sums by place: entries in memory, and sorted runs of them in files.

    Args:
      folder: for the files.
      memory: entries in memory before a run is written.
    """

    def __init__(self, folder: Path, memory: int):
        self._folder, self._memory = folder, memory
        self._parts: list[Entries] = []
        self._held = 0
        self._files: list[Entries] = []  # mapped

    def add(self, places: np.ndarray, sums: np.ndarray) -> None:
        self._parts.append((places, sums))
        self._held += len(places)
        if self._held > self._memory:
            merged = add_up(self._parts)
            self._parts, self._held = [merged], len(merged[0])
            # Else the same entries would be sorted again for every few new ones.
            if self._held > self._memory // 2:
                self._spill()

    def _spill(self) -> None:
        number = len(self._files)
        files = []
        for name, array in zip(("places", "sums"), self._parts[0]):
            path = self._folder / f"{number}-{name}.npy"
            np.save(path, array)
            files.append(np.load(path, mmap_mode="r"))
        self._files.append((files[0], files[1]))
        self._parts, self._held = [], 0

    def merged(self) -> Iterator[Entries]:
        """Yields all sums in the order of their places, in parts that fit in memory."""
        if not self._files:
            yield add_up(self._parts)
            return
        if self._parts:
            self._parts = [add_up(self._parts)]
            self._spill()
        total = sum(len(places) for places, _ in self._files)
        # Places are spread evenly, so parts of the range have about equal numbers.
        count = -(-total // self._memory)
        edges = [min((1 << 64) // count * k, (1 << 64) - 1) for k in range(count)]
        limits = [
            [*np.searchsorted(places, np.asarray(edges, np.uint64)), len(places)]
            for places, _ in self._files
        ]
        for k in range(count):
            parts = [
                (
                    np.asarray(places[at[k] : at[k + 1]]),
                    np.asarray(sums[at[k] : at[k + 1]]),
                )
                for (places, sums), at in zip(self._files, limits)
            ]
            yield add_up(parts)


def add_up(parts: list[Entries]) -> Entries:
    """Sorts entries by place and adds up those of equal places."""
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0)
    places, sums = (np.concatenate(arrays) for arrays in zip(*parts))
    order = np.argsort(places, kind="stable")
    places, sums = places[order], sums[order]
    first = np.flatnonzero(np.append(True, places[1:] != places[:-1])[: len(places)])
    return places[first], np.add.reduceat(sums, first) if len(first) else sums


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Makes an example of a row of `Cooccurrences`.

    Adds `one`, `other`, `near`, `pair_weights`, each (`length`,), and `words`, the
    number of pairs.
    """

    length: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        one, other = example["pieces"]
        return example | {
            "one": filled(one, self.length),
            "other": filled(other, self.length),
            "near": filled(example["near"], self.length, 1),
            "pair_weights": filled(np.ones(len(one), np.float32), self.length),
            "words": np.int32(len(one)),
        }
