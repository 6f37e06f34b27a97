"""Finds the best documents of a query among scores, and fuses ranked lists."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

Places = Int[np.ndarray, "N"]


class Found(NamedTuple):
    """The documents found for a query, the best first.

    Attributes:
      rows: their numbers in the corpus.
      scores: in single precision, as they are compared.
    """

    rows: Int[np.ndarray, "k"]
    scores: Float[np.ndarray, "k"]


NOTHING = Found(np.zeros(0, np.int64), np.zeros(0, np.float32))


def places_of(ids: Sequence[str]) -> Places:
    """Returns the place of each id in descending order, by which ties are broken.

    It is the order of trec_eval, so that a cut list is the beginning of the whole one.
    """
    order = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
    places = np.empty(len(ids), np.int64)
    places[order] = np.arange(len(ids))
    return places


def best(
    rows: Int[np.ndarray, "n"],
    scores: Shaped[np.ndarray, "n"],
    places: Places,
    count: int,
) -> Found:
    """Returns the `count` best of some documents; all, where there are fewer.

    Args:
      rows: the documents, each once.
    """
    scores = scores.astype(np.float32)
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        kept = np.flatnonzero(scores >= least)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((places[rows], -scores))[:count]
    return Found(rows[order], scores[order])


def search_vectors(
    queries: Float[np.ndarray, "Q D"],
    vectors: Float[np.ndarray, "N D"],
    places: Places,
    count: int,
    block: int = 16_384,
) -> list[Found]:
    """Finds the `count` documents with the largest inner products, exactly.

    Args:
      vectors: of the documents; may be mapped from a file.
      block: documents whose scores are computed at a time, for block / 64 queries.
    """
    found = []
    for first in range(0, len(queries), max(block // 64, 1)):
        asked = queries[first : first + max(block // 64, 1)]
        own = [NOTHING] * len(asked)
        for start in range(0, len(vectors), block):
            part = np.asarray(vectors[start : start + block])
            scores = asked @ part.T
            rows = np.arange(start, start + len(part))
            for n, old in enumerate(own):
                least = old.scores[-1] if len(old.rows) == count else -np.inf
                more = np.flatnonzero(scores[n] >= least)
                together = np.concatenate([old.rows, rows[more]])
                values = np.concatenate([old.scores, scores[n][more]])
                own[n] = best(together, values, places, count)
        found += own
    return found


def fuse(
    lists: Sequence[Found], places: Places, count: int, constant: float = 60.0
) -> Found:
    """Fuses ranked lists by reciprocal ranks (Cormack et al. 2009).

    A document's score is the sum of 1 / (constant + its rank) over the lists that have
    it.
    """
    scores: dict[int, float] = {}
    for one in lists:
        for rank, row in enumerate(one.rows.tolist(), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (constant + rank)
    rows = np.fromiter(scores, np.int64, len(scores))
    values = np.fromiter(scores.values(), np.float64, len(scores))
    return best(rows, values, places, count)
