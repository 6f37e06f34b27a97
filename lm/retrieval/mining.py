"""Finds hard negatives: documents that a search ranks high and that do not answer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lm.retrieval.index import Index


class Triple(NamedTuple):
    """A query and two documents, by their numbers; the first one answers the query."""

    query: int
    positive: int
    negative: int


def mine(
    index: Index,
    method: str,
    texts: Sequence[str],
    vectors: Float[np.ndarray, "Q D"] | None,
    gains: Sequence[Mapping[int, int]],
    *,
    first: int = 10,
    last: int = 50,
    share: float = 0.95,
    each: int = 1,
) -> Iterator[Triple]:
    """Yields triples for contrastive training, the highest ranks of a query first.

    A negative stands at the ranks `first` to `last`, since many of the ranks before are
    answers that nobody has judged, and its score is at most a share of the positive's
    (Moreira et al. 2024, arXiv:2407.15831, section 4.1). No document with a gain above
    0 is one. A positive with a score of 0 or less has none.

    Args:
      method: "dense" or "bm25", whose scores have a zero.
      texts, vectors: of the queries, as for `Index.search`.
      gains: of the documents judged for each query, by their numbers.
      each: the most negatives of a positive.
    """
    found = index.search(method, texts, vectors, last)
    for query, (text, one, judged) in enumerate(zip(texts, found, gains)):
        positives = [row for row, gain in judged.items() if gain > 0]
        if not positives:
            continue
        vector = None if vectors is None else vectors[query]
        scores = index.scores(method, text, vector, positives)
        rows, own = one.rows[first - 1 :], one.scores[first - 1 :]
        for positive, score in zip(positives, scores.tolist()):
            if score <= 0:
                continue
            below = rows[own <= share * score].tolist()
            chosen = [row for row in below if judged.get(row, 0) <= 0][:each]
            yield from (Triple(query, positive, row) for row in chosen)
