"""Tokens that give a label away: rows of one label have them, those of others do not.

Such a token is often left over from how the data were made, such as the name of a
source or the label itself. A model that reads it is right for the wrong reason.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from lm.data.index import Index

PURE = 0.99  # of the rows with a token that have one label
COVERED = 0.2  # of the rows of a label that have the token
LEAST = 20  # rows with the token; fewer may all have one label by chance
ROWS = 8_192  # rows counted at a time
CELLS = 1 << 26  # tokens times labels, 512 MiB of counts


@dataclasses.dataclass(frozen=True)
class Telling:
    """A token that gives a label away.

    Attributes:
      token, label: their ids.
      rows: rows with the token.
      pure: the share of them that have the label.
      covered: the share of the label's rows that have the token.
    """

    token: int
    label: int
    rows: int
    pure: float
    covered: float


def counts_of(
    indices: Sequence[Index], tokens: int, labels: int
) -> Int[np.ndarray, "labels tokens"]:
    """Counts the rows of each label in which each token occurs.

    Args:
      indices: rows with the field `labels`, ids below `labels`.
      tokens: the size of the vocabulary.
    """
    counts = np.zeros(labels * tokens, np.int64)
    for index in indices:
        for rows, ids in _occurrences(index):
            cells = index.fields["labels"][rows] * tokens + ids
            counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(labels, tokens)


def _occurrences(index: Index) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (row, token) of each token that a row has, once."""
    ends = index.spans[index.rows]
    for first in range(0, len(index), ROWS):
        last = min(first + ROWS, len(index))
        ids = np.asarray(index.tokens[ends[first] : ends[last]], np.int64)
        owners = np.repeat(np.arange(first, last), np.diff(ends[first : last + 1]))
        pairs = np.unique(owners << 32 | ids)
        yield pairs >> 32, pairs & 0xFFFFFFFF


def telling(
    counts: Int[np.ndarray, "labels tokens"], sizes: Int[np.ndarray, " labels"]
) -> list[Telling]:
    """Returns the tokens that give a label away, those of most rows first.

    Args:
      counts: see `counts_of`.
      sizes: the rows of each label.
    """
    rows = counts.sum(0)
    label = counts.argmax(0)
    own = counts.max(0, initial=0)
    found = np.flatnonzero(
        (rows >= LEAST) & (own >= PURE * rows) & (own >= COVERED * sizes[label])
    )
    each = [
        Telling(
            int(token),
            int(label[token]),
            int(rows[token]),
            float(own[token] / rows[token]),
            float(own[token] / sizes[label[token]]),
        )
        for token in found
        # A label that nearly all rows have is told by any token.
        if sizes[label[token]] < PURE * sizes.sum()
    ]
    return sorted(each, key=lambda one: -one.rows)
