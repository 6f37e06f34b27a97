"""Rows for models that predict each token given those before it."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.layouts import text_of
from lm.data.packing import FirstFit
from lm.data.sources.base import Record
from lm.data.transforms import Example, segments
from lm.tokenizers.base import Codec

Sizes = tuple[float, float]  # UTF-8 bytes, words


def _no_text(ids: list[int]) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Measure:
    """Counts the bytes and words that a text's targets stand for.

    Losses for a byte or a word can be compared whatever the tokenizer. Words are what
    white space separates and, as in published figures, ends: every end of a line and of
    a text that has a token, which is predicted like a word.

    Args:
      lines: the ends of lines that have tokens: those that are written ("written"), the
        last one of a text too if it is not ("all"), or none ("none").
      ends: whether a token of its own ends each text.
      decode: the tokenizer's decoder, token ids -> text; not part of the fingerprint.
    """

    lines: Literal["none", "written", "all"] = "written"
    ends: bool = False
    decode: Callable[[list[int]], str] = dataclasses.field(
        default=_no_text, repr=False, compare=False
    )

    def __call__(self, text: str, unseen: list[int]) -> Sizes:
        """Measures a text without its first token, where that is no target.

        Args:
          unseen: that token, if no token comes before it; otherwise [].
        """
        hidden = self.decode(unseen)
        size = max(len(text.encode()) - len(hidden.encode()), 0)
        rest = text[len(hidden) :]
        words = len(rest.split()) + self.ends
        if self.lines == "written":
            words += rest.count("\n")
        elif self.lines == "all":
            words += 1 + rest.removesuffix("\n").count("\n")
        return float(size), float(words)


def measure_of(codec: Codec, *, ends: bool) -> Measure:
    """Finds out which ends of lines a tokenizer keeps, by a text of two lines."""
    ids = codec.encode("a\na")
    lines: Literal["none", "written", "all"] = "none"
    if "\n" in codec.decode(ids):
        lines = "all" if codec.decode(ids[-1:]).endswith("\n") else "written"
    return Measure(lines, ends, codec.decode)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Texts cut into windows of `length` + 1 tokens; the last is only a target.

    Consecutive windows share one token, so that every token of a text except the first
    is a target exactly once. A `stride` below `length` gives more context in
    evaluation: each window begins `stride` tokens after the previous one and scores
    only the new targets, which then have at least `length` - `stride` tokens before
    them.

    The index stores for each row `unscored`, the number of leading targets that are not
    scored, and `bytes` and `words`, those of its texts (`Measure`) in proportion to the
    targets that the row scores.

    Args:
      length: number of input tokens of a row.
      stride: number of tokens between the beginnings of consecutive windows.
      pack: whether a row may hold windows of several texts.
      bos_id, eos_id: tokens added before and after each text, or None.
      column: the field of the record that holds the text.
      measure: counts the bytes and words of a text.
    """

    length: int
    stride: int
    pack: bool
    bos_id: int | None
    eos_id: int | None
    column: str = "text"
    measure: Measure = Measure()

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        rows = FirstFit((self.length,), 1 if self.pack else self.length)

        def write(row: list[tuple[list[int], int, Sizes, int]]) -> None:
            pieces, unscored, sizes, numbers = zip(*row)
            record = [*numbers] if self.pack else numbers[0]
            size, words = map(sum, zip(*sizes))
            out.row(
                pieces, unscored=unscored[0], bytes=size, words=words, record=record
            )

        for record, (tokens,) in records:
            unseen = [] if before else tokens[:1]
            size, words = self.measure(text_of(record, self.column), unseen)
            tokens = [*before, *tokens, *after]
            targets = len(tokens) - 1
            overlap = self.length - self.stride
            for start in range(0, max(targets - overlap, min(targets, 1)), self.stride):
                window = tokens[start : start + self.length + 1]
                unscored = overlap if start else 0
                share = (len(window) - 1 - unscored) / targets
                piece = window, unscored, (share * size, share * words), out.record
                for row in rows.add((len(window) - 1,), piece):
                    write(row)
        for row in rows.rest():
            write(row)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many inputs the window of each row has, without packing."""
        return ((index.row_lengths - 1, self.length),)


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Makes each piece a segment whose targets are its tokens shifted by one position.

    Adds `inputs`, `positions`, `segment_ids`, `targets`, `weights`, each (length of
    row,).
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        pieces = example["pieces"]
        targets = np.concatenate([piece[1:] for piece in pieces])
        weights = np.ones(len(targets), np.float32)
        weights[: example["unscored"]] = 0
        row = segments([piece[:-1] for piece in pieces])
        return example | row | {"targets": targets, "weights": weights}


@dataclasses.dataclass(frozen=True)
class Contiguous:
    """All texts concatenated and cut into rows of `length` tokens.

    The piece of a row has `length` + 1 tokens; the last is only a target and is the
    first input of the next row. The last row of a source may be shorter. The setting
    `data.order="stream"` needs this layout, since row i + 1 continues row i.

    The index stores for each row `offset`, the number of tokens of its first text in
    earlier rows; `starts`, the positions where texts begin (`length` if only the last
    target belongs to the text); `record`, the records of its texts in order; and
    `bytes` and `words`, those of its texts (`Measure`) in proportion to the targets in
    the row.

    Args:
      length: number of input tokens of a row.
      bos_id, eos_id: tokens added before and after each text, or None.
      across: whether the first token of a text is a target, predicted from the end of
        the previous text; otherwise its weight is 0.
      column: the field of the record that holds the text.
      measure: counts the bytes and words of a text.
    """

    length: int
    bos_id: int | None
    eos_id: int | None
    across: bool
    column: str = "text"
    measure: Measure = Measure()

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        buffer, begun = _Buffer(self.length, self.across, out), False
        for record, (tokens,) in records:
            if tokens:
                seen = before or (self.across and begun)
                text, begun = text_of(record, self.column), True
                sizes = self.measure(text, [] if seen else tokens[:1])
                buffer.add([*before, *tokens, *after], out.record, sizes)
        buffer.rest()


@dataclasses.dataclass
class _Text:
    """A text with tokens that are not written yet.

    Attributes:
      start, end: its span in the buffered tokens; `start` is negative if the text
        begins in a row that is already written.
      record: the number of its record.
      sizes: its UTF-8 bytes and words, of each target.
    """

    start: int
    end: int
    record: int
    sizes: Sizes


class _Buffer:
    """Tokens that are not written yet, and the texts that they belong to."""

    def __init__(self, length: int, across: bool, out: Writer):
        self._length, self._across, self._out = length, across, out
        self._tokens: list[int] = []
        self._texts: collections.deque[_Text] = collections.deque()
        self._first = True

    def add(self, tokens: list[int], record: int, sizes: Sizes) -> None:
        start = len(self._tokens)
        self._tokens += tokens
        targets = len(tokens) - (not self._across or self._first)
        self._first = False
        size, words = (each / max(targets, 1) for each in sizes)
        self._texts.append(_Text(start, len(self._tokens), record, (size, words)))
        done = 0
        while len(self._tokens) - done > self._length:
            self._row(self._tokens[done : done + self._length + 1])
            done += self._length
        del self._tokens[:done]

    def rest(self) -> None:
        """Writes the last, shorter row."""
        if len(self._tokens) > 1:
            self._row(self._tokens)

    def _row(self, piece: list[int]) -> None:
        """Writes a row that begins with the first buffered token."""
        fed = len(piece) - 1
        held = [text for text in self._texts if text.start < fed]
        counts = [self._targets(text, fed) for text in self._texts]
        size, words = (
            sum(count * text.sizes[n] for count, text in zip(counts, self._texts))
            for n in range(2)
        )
        self._out.row(
            [piece],
            offset=max(-held[0].start, 0),
            starts=[t.start for t in self._texts if 0 <= t.start <= fed],
            record=[text.record for text in held],
            bytes=float(size),
            words=float(words),
        )
        for text in self._texts:
            text.start -= self._length
            text.end -= self._length
        while self._texts and self._texts[0].end <= 0:
            self._texts.popleft()

    def _targets(self, text: _Text, fed: int) -> int:
        """Counts the tokens of a text that are targets 1 to `fed` of a row."""
        first = max(text.start + (not self._across), 1)
        return max(min(text.end - 1, fed) - first + 1, 0)


def read_span(index: Index, length: int, start: int, size: int) -> dict[str, Any]:
    """Returns what `Index.row` gives, for a row that begins and ends elsewhere.

    Args:
      index: of rows that `Contiguous` made of one source.
      length: of its rows.
      start: the first input, counted from the beginning of the first row.
      size: the inputs, at least 1.
    """
    first, at = divmod(start, length)
    rows = [index.row(i) for i in range(first, (start + size - 1) // length + 1)]
    (head,), tails = rows[0]["pieces"], [row["pieces"][0][1:] for row in rows[1:]]
    places = [row["starts"] + n * length for n, row in enumerate(rows)]
    starts = np.unique(np.concatenate(places))
    begun = starts[starts <= at]
    return {
        "pieces": [np.concatenate([head, *tails])[at : at + size + 1]],
        "offset": at - begun[-1] if len(begun) else rows[0]["offset"] + at,
        "starts": starts[(starts >= at) & (starts <= at + size)] - at,
    }


@dataclasses.dataclass(frozen=True)
class NextInStream:
    """Makes an example of a row of `Contiguous`: the target is the next token.

    Positions count from the beginning of the text. If a lane of a stream begins in the
    middle of a text, positions count from the beginning of the lane:
    `example["passed"]` is the number of earlier rows of the lane, 0 if it is absent; or
    `example["before"]`, that of earlier tokens, where rows differ in length.

    Adds `inputs`, `positions`, `segment_ids`, `targets`, `weights`, each (length of
    row,).

    Args:
      length: number of input tokens of a row.
      reset: whether each text is a separate segment, whose positions begin at 0 and
        whose first token has weight 0 as a target. Otherwise the row is one segment,
        and positions count from the beginning of the lane.
    """

    length: int
    reset: bool

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        (piece,) = example["pieces"]
        before = example.get("before", example.get("passed", 0) * self.length)
        positions = np.arange(len(piece) - 1, dtype=np.int32)
        segment_ids = np.ones(len(piece) - 1, np.int32)
        weights = np.ones(len(piece) - 1, np.float32)
        if self.reset:
            starts = example["starts"]
            lengths = np.diff([0, *starts, len(positions)])
            begins = np.asarray([-min(before, int(example["offset"])), *starts])
            positions -= np.repeat(begins, lengths).astype(np.int32)
            segment_ids = np.repeat(np.arange(len(begins), dtype=np.int32), lengths)
            segment_ids += segment_ids[0] == 0
            weights[starts[starts > 0] - 1] = 0
        else:
            positions += before
        return example | {
            "inputs": piece[:-1],
            "positions": positions,
            "segment_ids": segment_ids,
            "targets": piece[1:],
            "weights": weights,
        }
