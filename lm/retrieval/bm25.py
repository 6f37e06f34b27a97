"""BM25, which ranks documents by the words they share with a query.

Robertson and Zaragoza 2009, section 3, with the inverse document frequency of Lucene,
ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lm.retrieval.ranks import Found, Places, best

BLOCK = 1 << 24  # scores computed at a time


@dataclasses.dataclass(frozen=True)
class Postings:
    """How often each of T terms occurs in which of N documents: P pairs.

    Attributes:
      terms: sorted.
      starts: (T + 1,) where the pairs of each term begin, and the end.
      documents, counts: (P,) of the pairs, documents ascending within a term.
      lengths: (N,) terms of each document.
    """

    terms: tuple[str, ...]
    starts: Int[np.ndarray, "T+1"]
    documents: Int[np.ndarray, "P"]
    counts: Int[np.ndarray, "P"]
    lengths: Int[np.ndarray, "N"]


def count(texts: Iterable[Sequence[str]]) -> Postings:
    """Counts the terms of documents."""
    numbers: dict[str, int] = {}
    terms: list[int] = []
    counts: list[int] = []
    sizes: list[int] = []
    lengths: list[int] = []
    for text in texts:
        own = Counter(text)
        terms += [numbers.setdefault(term, len(numbers)) for term in own]
        counts += own.values()
        sizes.append(len(own))
        lengths.append(len(text))
    names = sorted(numbers)
    place = np.empty(len(names), np.int64)
    place[[numbers[name] for name in names]] = np.arange(len(names))
    column = place[np.asarray(terms, np.int64)]
    order = np.argsort(column, kind="stable")
    return Postings(
        terms=tuple(names),
        starts=np.searchsorted(column[order], np.arange(len(names) + 1)),
        documents=np.repeat(np.arange(len(sizes)), sizes)[order].astype(np.int32),
        counts=np.asarray(counts, np.int32)[order],
        lengths=np.asarray(lengths, np.int32),
    )


@dataclasses.dataclass(frozen=True)
class BM25:
    """Scores documents by terms.

    Attributes:
      k1: how slowly the weight of a term grows with its number in a document.
      b: how much a document's length counts, from 0 to 1.
    """

    postings: Postings
    k1: float = 1.2
    b: float = 0.75

    @functools.cached_property
    def _weights(self) -> Any:
        """The weight of each term in each document, (T, N), sparse."""
        from scipy import sparse

        own = self.postings
        documents = len(own.lengths)
        held = np.diff(own.starts)
        idf = np.log(1 + (documents - held + 0.5) / (held + 0.5))
        mean = max(own.lengths.mean(), 1.0) if documents else 1.0
        norm = self.k1 * (1 - self.b + self.b * own.lengths / mean)
        counts = own.counts.astype(np.float64)
        values = np.repeat(idf, held) * counts * (self.k1 + 1)
        values /= counts + norm[own.documents]
        shape = (len(own.terms), documents)
        return sparse.csr_matrix((values, own.documents, own.starts), shape)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.postings.terms)}

    def search(
        self, queries: Sequence[Sequence[str]], places: Places, count: int
    ) -> list[Found]:
        """Finds the best `count` documents for queries, as terms.

        A term that a query repeats counts as often. Documents that share no term with
        a query are not found.
        """
        found = []
        step = max(BLOCK // max(len(self.postings.lengths), 1), 1)
        for first in range(0, len(queries), step):
            for scores in self.scores(queries[first : first + step]):
                rows = np.flatnonzero(scores > 0)
                found.append(best(rows, scores[rows], places, count))
        return found

    def scores(self, queries: Sequence[Sequence[str]]) -> np.ndarray:
        """Computes the score of each document for each query, (Q, N)."""
        from scipy import sparse

        rows, columns = [], []
        for row, query in enumerate(queries):
            known = [self._numbers[t] for t in sorted(query) if t in self._numbers]
            rows += [row] * len(known)
            columns += known
        shape = (len(queries), len(self.postings.terms))
        asked = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)
        return (asked @ self._weights).toarray()
