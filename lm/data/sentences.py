"""Pairs of sentence runs: the rows and examples of NSP and SOP.

Devlin et al. 2019 (next sentence prediction); Lan et al. 2020 (sentence order).
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.layouts import check_length, text_of
from lm.data.sources.base import Record
from lm.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Fills each row with consecutive sentences of one document; a piece is a sentence.

    A sentence ends at a line break, or after a full stop, exclamation or question mark
    before white space. Sentences longer than half a row are cut, so that every row has
    at least two pieces. A document of a single token gives no row.

    The index keeps for each row `document`, the number of its document.

    Args:
      length: tokens of a row, special tokens included.
      short: share of the rows that end at a random smaller length (Devlin et al. 2019,
        section A.2).
      column: the field of the record that holds the text.
    """

    length: int
    short: float
    column: str = "text"

    OVERHEAD = 3  # [CLS] A [SEP] B [SEP]

    def __post_init__(self):
        what = f"{self.OVERHEAD} special tokens and one of each sentence"
        check_length(self.length, self.OVERHEAD + 2, what)

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
                out.row(row, document=document, record=out.record)
            document += bool(parts)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions the sentences of each row need."""
        return ((index.row_lengths + self.OVERHEAD, self.length),)

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
class NextSentence:
    """Makes two pieces, A and B, and a label of a row of `Sentences`.

    The sentences are split into A and B at a random one. "nsp" (Devlin et al. 2019,
    section 3.1): with probability 1/2 B is replaced by sentences of another document
    (label 1), else it is the true continuation (label 0). "sop" (Lan et al. 2020,
    section 3.1): with probability 1/2 A and B are swapped (label 1).

    Adds `labels` () int32 and `label_weights` () float32.

    Args:
      index: all rows of the source, from which other documents are drawn.
      length: tokens of A and B together.
      task: "nsp" or "sop".
    """

    index: Index
    length: int
    task: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        sentences = example["pieces"]
        cut = int(rng.integers(1, len(sentences)))
        first = np.concatenate(sentences[:cut])
        second = np.concatenate(sentences[cut:])
        label = int(rng.random() < 0.5)
        if label and self.task == "nsp":
            second = self._elsewhere(example["document"], self.length - len(first), rng)
        elif label:
            first, second = second, first
        return example | {
            "pieces": [first, second],
            "labels": np.int32(label),
            "label_weights": np.float32(1),
        }

    def _elsewhere(
        self, document: int, room: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws sentences of another document, at most `room` tokens of them."""
        documents = self.index.fields["document"]
        low, high = np.searchsorted(documents, [document, document + 1])
        other = int(rng.integers(len(documents) - (high - low)))
        sentences = self.index.row(other if other < low else other + high - low)[
            "pieces"
        ]
        start = int(rng.integers(len(sentences)))
        return np.concatenate(sentences[start:])[:room]
