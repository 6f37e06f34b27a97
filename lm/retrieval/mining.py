"""Finds hard negatives: documents that a search ranks high and that do not answer."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lm.retrieval.index import Index


class Triple(NamedTuple):
    """A query and two documents, by their numbers; the first one answers the query."""

    query: int
    positive: int
    negative: int


def numbered(
    qrels: Mapping[str, Mapping[str, int]], queries: Sequence[str], ids: Sequence[str]
) -> list[dict[int, int]]:
    """Returns the gains of the documents of each query, by their numbers."""
    rows = {id: row for row, id in enumerate(ids)}
    return [
        {rows[id]: gain for id, gain in qrels.get(query, {}).items()}
        for query in queries
    ]


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


def format_triples(
    triples: Iterable[Triple], queries: Sequence[str], documents: Sequence[str]
) -> list[str]:
    """Formats triples as JSON lines of `text`, `positive` and `negative`."""
    rows = (
        {
            "text": queries[one.query],
            "positive": documents[one.positive],
            "negative": documents[one.negative],
        }
        for one in triples
    )
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
