"""Rows for models that say each token given those before it."""

import dataclasses

import numpy as np

from lm.data.index import Encoded, Writer
from lm.data.layouts import text_of
from lm.data.packing import FirstFit
from lm.data.sources.base import Record
from lm.data.transforms import Example, segments


@dataclasses.dataclass(frozen=True)
class Windows:
    """Texts cut into windows of `length` + 1 tokens, the last of each to be said only.

    Neighbouring windows share a token, so that every token but the first of a text is a
    target once. With a smaller `stride` they share more, for evaluation: each window
    begins `stride` tokens after the one before and counts only the targets that are
    new, which then have at least `length` - `stride` tokens before them.

    The index keeps for each row `unscored`, how many of its first targets do not count,
    and `bytes`, its share of the UTF-8 bytes of its texts, by counted targets.

    Args:
      length: tokens that a row feeds to the model.
      stride: tokens from one window to the next.
      pack: whether a row may hold windows of several texts.
      bos_id, eos_id: what begins and ends a text, or None.
      column: the field of the record that holds the text.
    """

    length: int
    stride: int
    pack: bool
    bos_id: int | None
    eos_id: int | None
    column: str = "text"

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        rows = FirstFit((self.length,), 1 if self.pack else self.length)

        def write(row: list[tuple[list[int], int, float]]) -> None:
            pieces, unscored, sizes = zip(*row)
            out.row(pieces, unscored=unscored[0], bytes=sum(sizes))

        for record, (tokens,) in records:
            tokens = [*before, *tokens, *after]
            targets = len(tokens) - 1
            size = len(text_of(record, self.column).encode()) / max(targets, 1)
            overlap = self.length - self.stride
            for start in range(0, max(targets - overlap, min(targets, 1)), self.stride):
                window = tokens[start : start + self.length + 1]
                unscored = overlap if start else 0
                piece = window, unscored, (len(window) - 1 - unscored) * size
                for row in rows.add((len(window) - 1,), piece):
                    write(row)
        for row in rows.rest():
            write(row)


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Each piece becomes a segment whose targets are its tokens, one place on.

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
