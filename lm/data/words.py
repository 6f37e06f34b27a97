"""Rows of sentences given as words, each with a tag: pieces, windows, alignment."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data import tags as schemes
from lm.data.index import Encoded, Writer
from lm.data.layouts import TooLong, check_length, column_of, list_of, texts_of
from lm.data.packing import FirstFit
from lm.data.sources.base import Record
from lm.data.transforms import Example, filled, segments
from lm.errors import DataError

# How a text is split into words.
SPLITS = {
    "spaces": re.compile(r"\S+"),
    "punctuation": re.compile(r"\w+|[^\w\s]"),
    "characters": re.compile(r"\S"),
}
FIRST, LAST = 1, 2  # bits: the first and the last word of a sentence


@dataclasses.dataclass(frozen=True)
class Window:
    """Words of a sentence that stand in one row: `start` to `end` - 1.

    Attributes:
      read: (end - start,) bool, the words whose tags are learnt and predicted here;
        the others are their context.
    """

    start: int
    end: int
    read: np.ndarray = dataclasses.field(repr=False)


def windows(sizes: Sequence[int], room: int, stride: int) -> list[Window]:
    """Cuts a sentence into windows of whole words.

    Each word is read in one window: where its distance to the nearer edge, in pieces,
    is largest, and in the first of several such windows.

    Args:
      sizes: the pieces of each word, 1 to `room`.
      room: pieces of a window.
      stride: pieces between the starts of windows, rounded up to whole words.
    """
    ends = np.cumsum(sizes)
    starts = ends - sizes
    cuts: list[tuple[int, int]] = []
    start = 0
    while True:
        end = int(np.searchsorted(ends, starts[start] + room, "right"))
        cuts.append((start, end))
        if end == len(sizes):
            break
        after = int(np.searchsorted(starts, starts[start] + stride))
        start = min(max(after, start + 1), end)
    best, owner = np.full(len(sizes), -1), np.zeros(len(sizes), int)
    for number, (start, end) in enumerate(cuts):
        part = slice(start, end)
        near = np.minimum(starts[part] - starts[start], ends[end - 1] - ends[part])
        better = near > best[part]
        owner[part][better] = number
        best[part][better] = near[better]
    return [Window(a, b, owner[a:b] == n) for n, (a, b) in enumerate(cuts)]


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Reads the words of a record and their tags.

    Args:
      words, tags: the fields of the record; tags=None gives every word the first
        label. Words are a list, or a text that is split.
      labels: the tags in the order of their numbers.
      given, scheme: the scheme of the record's tags, and of the labels.
      repair: what to do with tags that `given` does not allow; see `tags.convert`.
      mark: a field with the number of the marked word, from 0, or a list of numbers.
      split: what the words of a text are; a key of SPLITS.
    """

    words: str
    tags: str | None
    labels: tuple[str, ...]
    given: schemes.Scheme = "word"
    scheme: schemes.Scheme = "word"
    repair: bool = True
    mark: str | None = None
    split: str = "punctuation"

    def words_of(self, record: Record) -> tuple[str, ...]:
        """Returns the words of a record; DataError where they are no texts."""
        text, spans = self.places_of(record)
        return tuple(text[start:end] for start, end in spans)

    def places_of(self, record: Record) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text of a record, and the characters of each word in it.

        The text of a list of words has a space between them.
        """
        if isinstance(text := column_of(record, self.words), str):
            return text, [m.span() for m in SPLITS[self.split].finditer(text)]
        words = texts_of(record, self.words)
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        spans = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends)]
        return " ".join(words), spans

    def tags_of(self, record: Record) -> list[str]:
        """Returns the tags of a record, in the scheme of the labels.

        Raises:
          DataError: they are not as many as the words, or cannot be converted.
        """
        words = self.words_of(record)
        if self.tags is None:
            return [self.labels[0]] * len(words)
        found = [str(tag) for tag in list_of(record, self.tags)]
        if len(found) != len(words):
            raise DataError(
                record.where,
                f"{len(words)} {self.words} and {len(found)} {self.tags}",
                "a tag for each word",
            )
        try:
            return schemes.convert(found, self.given, self.scheme, repair=self.repair)
        except ValueError as error:
            raise DataError(
                record.where,
                f"{self.tags} with {error}",
                f"tags of the scheme {self.given!r}",
                "set objective.given to the scheme of the data"
                + ", or objective.repair=true" * (not self.repair),
            ) from error

    def ids(self, record: Record) -> list[int]:
        """Returns the numbers of a record's tags; DataError for one without a label."""
        found = self.tags_of(record)
        numbers = {label: number for number, label in enumerate(self.labels)}
        for at, tag in enumerate(found):
            if tag not in numbers:
                word = self.words_of(record)[at]
                known = ", ".join(self.labels[:20]) + ", ..." * (len(self.labels) > 20)
                raise DataError(
                    record.where,
                    f"{self.tags} {tag!r} of word {at + 1} ({word!r:.40})",
                    f"one of {known}",
                    "list every tag in objective.labels",
                )
        return [numbers[tag] for tag in found]

    def marks(self, record: Record) -> list[int]:
        """Returns the numbers of the marked words.

        Raises:
          DataError: one of them is no word of the sentence.
        """
        if self.mark is None:
            return []
        places, count = list_of(record, self.mark), len(self.words_of(record))
        for at in places:
            if not isinstance(at, int) or not 0 <= at < count:
                expected = f"the number of a word, 0 to {count - 1}"
                raise DataError(record.where, f"{self.mark} {at!r}", expected)
        return [*places]


@dataclasses.dataclass(frozen=True)
class Words:
    """Makes rows of records that hold the words of a sentence and their tags.

    A piece of the index is a word. Words of which the tokenizer makes no piece are left
    out, and words longer than a row are cut; the sentences with such words are counted.
    The index stores for each row arrays with an item for each of its words: `word`, its
    number in the sentence; `tag`, the number of its tag; `read`, see `Window`;
    `border`, FIRST or LAST or their sum; `marked`, 1 for a marked word. And `sizes`,
    the number of words of each of the row's windows; `cut`, the tokens that are left
    out, in the first row of a sentence; with `characters`, `bytes` of `bytes_of`. A
    sentence without any piece has a row without words, so that each record has a row.

    Args:
      reader: reads a record.
      prefix: text put before each word.
      length: tokens that a row holds, special tokens included.
      overhead: special tokens that each window gets later.
      stride: see `windows`.
      pack: whether a row may hold several windows.
      too_long: how a sentence is treated that does not fit a row of its own. "cut"
        leaves its last words out.
      characters: bytes that are kept of each word.
    """

    reader: Tagged
    prefix: str
    length: int
    overhead: int
    stride: int
    pack: bool
    too_long: TooLong
    characters: int = 0

    def __post_init__(self):
        what = f"{self.overhead} special tokens and one of a word"
        check_length(self.length, self.overhead + 1, what)

    def texts(self, record: Record) -> list[str]:
        self.reader.ids(record)
        self.reader.marks(record)
        return [self.prefix + word for word in self.reader.words_of(record)]

    def write(self, records: Encoded, out: Writer) -> None:
        least = self.overhead if self.pack else self.length
        rows = FirstFit((self.length,), least)
        for record, words in records:
            for parts in self._parts(record, words, out):
                pieces = parts.pop("pieces")
                size = sum(map(len, pieces)) + self.overhead
                item = pieces, parts, out.record
                for row in rows.add((min(size, self.length),), item):
                    self._write(row, out)
        for row in rows.rest():
            self._write(row, out)

    def _parts(
        self, record: Record, words: list[list[int]], out: Writer
    ) -> list[dict[str, Any]]:
        """Returns pieces and arrays of each window of a sentence."""
        room = self.length - self.overhead
        ids = self.reader.ids(record)
        marks = {*self.reader.marks(record)}
        kept = [at for at, pieces in enumerate(words) if pieces]
        if len(kept) < len(words):
            out.counts["words_without_pieces_skip"] += 1
        if any(len(pieces) > room for pieces in words):
            out.counts["long_words_cut"] += 1
        if not kept:
            return [self._part([], [], [], [], [], [], []) | {"cut": 0}]
        sizes = [min(len(words[at]), room) for at in kept]
        found = windows(sizes, room, self.stride)
        if len(found) > 1:
            if self.too_long == "error":
                raise DataError(
                    record.where,
                    f"{sum(sizes)} tokens in {len(words)} words",
                    f"at most {room}",
                    "raise seq_len, or set objective.too_long=window, cut or skip",
                )
            out.counts[f"too_long_{self.too_long}"] += 1
            if self.too_long == "skip":
                return []
            if self.too_long == "cut":
                first = found[0]
                found = [Window(0, first.end, np.ones(first.end, bool))]
        made = []
        texts = self.reader.words_of(record) if self.characters else ()
        for window in found:
            here = kept[window.start : window.end]
            border = np.zeros(len(here), int)
            border[0] += FIRST * (window.start == 0)
            border[-1] += LAST * (window.end == len(kept))
            made.append(
                self._part(
                    [words[at][:room] for at in here],
                    here,
                    [ids[at] for at in here],
                    window.read,
                    border,
                    [at in marks for at in here],
                    [texts[at] for at in here] if texts else [],
                )
            )
        left = sum(map(len, words)) - sum(sizes[: found[-1].end])
        return [part | {"cut": left * (n == 0)} for n, part in enumerate(made)]

    def _part(self, pieces, word, tag, read, border, marked, texts) -> dict[str, Any]:
        small = {"read": read, "border": border, "marked": marked}
        return {
            "pieces": pieces,
            "word": np.asarray(word, np.int32),
            "tag": np.asarray(tag, np.int32),
            **{name: np.asarray(values, np.int8) for name, values in small.items()},
            **({"bytes": bytes_of(texts, self.characters)} if self.characters else {}),
        }

    def _write(self, row: list[tuple[list, dict[str, Any], int]], out: Writer) -> None:
        pieces, parts, records = zip(*row)
        cut = sum(part.pop("cut") for part in parts)
        arrays = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
        out.row(
            [*itertools.chain(*pieces)],
            sizes=[len(part) for part in pieces],
            record=[*records] if self.pack else records[0],
            cut=cut,
            **arrays,
        )


def bytes_of(words: Sequence[str], most: int) -> np.ndarray:
    """Returns the UTF-8 bytes of words from 1 to 256, padded with 0: (words, most).

    Of a word with more than `most` bytes the first half and the last are kept.
    """
    made = np.zeros((len(words), most), np.uint16)
    for row, word in enumerate(words):
        text = word.encode()
        if len(text) > most:
            text = text[: most // 2] + text[len(text) - most + most // 2 :]
        made[row, : len(text)] = np.frombuffer(text, np.uint8)
        made[row, : len(text)] += 1
    return made


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Makes an example of a row of `Words`, padded.

    Adds `inputs`, `positions`, `segment_ids`, `token_types` (1 for the pieces of marked
    words), each (length,), and with a place for each word (length - overhead,):
    `word_starts` and `word_ends`, the place of its first piece and that after its last
    (both 0 for padding); `word_segments`, the number of its window in the row, from 1;
    `word_borders`; `labels` and `label_weights`, 1 for words that are read. And, where
    they are kept, `characters` (length, bytes): those of the word of each piece.

    Args:
      length: tokens of a row.
      before, after: special tokens around each window.
      pad_id: the token for padding.
    """

    length: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        pieces = example["pieces"]
        parts, places, types = [], [], []
        begun = taken = 0
        for count in example["sizes"]:
            here = pieces[taken : taken + count]
            ends = begun + len(self.before) + np.cumsum([len(p) for p in here])
            places.append(ends)
            window = np.asarray([*self.before, *itertools.chain(*here), *self.after])
            kinds = np.repeat(
                example["marked"][taken : taken + count], [len(p) for p in here]
            )
            types += [np.zeros(len(self.before)), kinds, np.zeros(len(self.after))]
            parts.append(window)
            begun += len(window)
            taken += count
        row = segments(parts)
        ends = np.concatenate(places).astype(np.int32)
        numbers = np.arange(1, len(parts) + 1, dtype=np.int32)
        words = {
            "word_starts": ends - np.asarray([len(p) for p in pieces], np.int32),
            "word_ends": ends,
            "word_segments": np.repeat(numbers, example["sizes"]),
            "word_borders": example["border"].astype(np.int32),
            "labels": example["tag"],
            "label_weights": example["read"].astype(np.float32),
        }
        row["token_types"] = np.concatenate(types).astype(np.int32)
        spelling: Example = {}
        if "bytes" in example:
            array = np.zeros((self.length, example["bytes"].shape[1]), np.int32)
            for start, end, own in zip(words["word_starts"], ends, example["bytes"]):
                array[start:end] = own
            spelling["characters"] = array
        most = self.length - len(self.before) - len(self.after)
        inputs = filled(row.pop("inputs"), self.length, self.pad_id)
        return {
            "inputs": inputs,
            **{name: filled(array, self.length) for name, array in row.items()},
            **{name: filled(array, most) for name, array in words.items()},
            **spelling,
        }
