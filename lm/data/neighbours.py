"""Rows for models of words by their neighbours: texts in order, without unknown words.

The published programs leave rare words out of a text before they look at neighbours, so
that words on either side of a rare one become neighbours; so do these rows.
"""

import dataclasses

import numpy as np

from lm.data.index import Encoded, Writer
from lm.data.layouts import text_of
from lm.data.sources.base import Record
from lm.data.transforms import Example


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of whole texts, one after the other, each a piece.

    A text without known words is left out (the index counts those), and a text
    of more than `length` tokens is cut.

    Args:
      length: the most tokens of a row.
      dropped: ids that are left out of the texts, such as that of the unknown token.
      pack: whether a row may hold several texts.
      column: the field of the record that holds the text.
    """

    length: int
    dropped: tuple[int, ...]
    pack: bool
    column: str = "text"

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, self.column)]

    def write(self, records: Encoded, out: Writer) -> None:
        row: list[list[int]] = []
        numbers: list[int] = []
        room = self.length

        def flush() -> None:
            nonlocal row, numbers, room
            if row:
                out.row(row, record=numbers if self.pack else numbers[0])
            row, numbers, room = [], [], self.length

        for _, (tokens,) in records:
            kept = [token for token in tokens if token not in self.dropped]
            out.counts["unknown texts_left out"] += not kept
            for start in range(0, len(kept), self.length):
                piece = kept[start : start + self.length]
                if len(piece) > room or not self.pack:
                    flush()
                row.append(piece)
                numbers.append(out.record)
                room -= len(piece)
        flush()


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Draws the words that sub-sampling keeps, their windows, and noise.

    The words of a row that are kept are cut into spans of L = `span` centres. A span
    has C = L + 2 window contexts: its centres, and the `window` words on either side.
    A centre has a window of 1 to `window` words on either side, drawn anew each time,
    which ends where its text ends. The N words of noise are shared by a span.

    Adds, with S = `spans`:

        contexts (S, C), left, right (S, L)   words of each window beside its centre
        negatives (S, N)                      noise, where N > 0
        pieces (S, C, K)                      buckets of n-grams of the contexts, -1
                                              where a word has fewer than K
        nodes, turns (S, L, P)                of the Huffman code of the centres
        words ()                              words of the row before sub-sampling
        pair_weights (S, L)                   1 for each real centre

    Args:
      keep: (V,) the probability with which a word is kept.
      noise: (V,) the cumulative distribution that `noise_range` ends.
      shared: N.
      pieces: the buckets of all words, one after the other, or None.
      ends: (V,) where those of each word end.
      most_pieces: K; of a word that has more, so many are drawn each time.
      nodes, turns: (V, P) or None.
    """

    spans: int
    span: int
    window: int
    keep: np.ndarray = dataclasses.field(repr=False)
    noise: np.ndarray = dataclasses.field(repr=False)
    noise_range: int
    shared: int
    pieces: np.ndarray | None = dataclasses.field(default=None, repr=False)
    ends: np.ndarray | None = dataclasses.field(default=None, repr=False)
    most_pieces: int = 0
    nodes: np.ndarray | None = dataclasses.field(default=None, repr=False)
    turns: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        texts = example["pieces"]
        words = np.concatenate(texts)
        owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        kept = rng.random(len(words)) < self.keep[words]
        read, words, owner = len(words), words[kept], owner[kept]
        sizes = np.bincount(owner, minlength=len(texts))
        begin = np.cumsum(sizes) - sizes
        place = np.arange(len(words)) - begin[owner]
        reach = rng.integers(1, self.window + 1, len(words))
        left = np.minimum(reach, place)
        right = np.minimum(reach, sizes[owner] - 1 - place)

        def cut(array: np.ndarray) -> np.ndarray:
            out = np.zeros((self.spans * self.span, *array.shape[1:]), np.int32)
            out[: len(array)] = array
            return out.reshape(self.spans, self.span, *array.shape[1:])

        wide = np.zeros(self.spans * self.span + 2 * self.window, np.int32)
        wide[self.window : self.window + len(words)] = words
        windows = np.lib.stride_tricks.sliding_window_view(
            wide, self.span + 2 * self.window
        )
        contexts = np.ascontiguousarray(windows[:: self.span])
        real = np.zeros(self.spans * self.span, np.float32)
        real[: len(words)] = 1
        out = {
            "contexts": contexts,
            "left": cut(left),
            "right": cut(right),
            "words": np.int32(read),
            "pair_weights": real.reshape(self.spans, self.span),
        }
        if self.shared:
            drawn = rng.integers(0, self.noise_range, (self.spans, self.shared))
            out["negatives"] = np.searchsorted(self.noise, drawn, "right").astype(
                np.int32
            )
        if self.pieces is not None and self.ends is not None:
            out["pieces"] = self._pieces_of(contexts, self.pieces, self.ends, rng)
        if self.nodes is not None and self.turns is not None:
            centers = contexts[:, self.window : self.window + self.span]
            out |= {"nodes": self.nodes[centers], "turns": self.turns[centers]}
        return example | out

    def _pieces_of(
        self,
        words: np.ndarray,
        pieces: np.ndarray,
        ends: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Returns the buckets of each word's n-grams: (S, C) -> (S, C, K)."""
        every = np.diff(ends, prepend=0)
        most = max(min(self.most_pieces, int(every.max())), 1)
        sizes = every[words][..., None]
        place = np.broadcast_to(np.arange(most), (*words.shape, most)).copy()
        # Of a longer word one is drawn from each of K equal parts of its n-grams.
        long = (sizes > most)[..., 0]
        drawn = (place[long] + rng.random((int(long.sum()), most))) * sizes[long] / most
        place[long] = drawn.astype(np.int64)
        at = np.minimum(ends[words][..., None] - sizes + place, len(pieces) - 1)
        return np.where(place < sizes, pieces[at], -1).astype(np.int32)
