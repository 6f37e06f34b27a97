"""Measures of ranked lists of documents against judgements, as trec_eval has them.

A run has for each query the scores of the documents that it found, by their ids; the
judgements have for each query the gains of the documents that were judged. A document
is relevant if its gain is 1 or more, and one that was not judged is not relevant. Of
equal scores the larger id stands first (by code points), whatever a file says of ranks,
and scores are compared in single precision.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from lm.metrics import statistics
from lm.metrics.statistics import Interval

Run = Mapping[str, Mapping[str, float]]
Judgements = Mapping[str, Mapping[str, int]]
Values = Float[np.ndarray, "Q"]


@dataclasses.dataclass(frozen=True)
class Judged:
    """The ranked lists of Q queries with their judgements.

    Attributes:
      queries: their ids.
      gains: (Q, K) of the documents in their order; 0 of those that are not relevant,
        -1 where a list has ended.
      ideal: (Q, J) all gains of the relevant documents of a query, the largest first.
    """

    queries: tuple[str, ...]
    gains: Int[np.ndarray, "Q K"]
    ideal: Int[np.ndarray, "Q J"]

    @property
    def relevant(self) -> Int[np.ndarray, "Q"]:
        """How many documents are relevant to each query."""
        return (self.ideal > 0).sum(axis=1)


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Returns ids from the best score on; of equal scores, the larger id first."""
    return sorted(scores, key=lambda id: (np.float32(scores[id]), id), reverse=True)


def judge(run: Run, judgements: Judgements, queries: Iterable[str]) -> Judged:
    """Puts the gains of ranked documents in order.

    Args:
      queries: those that count. One that the run lacks has found nothing; one without
        a relevant document has the value 0 by all measures.
    """
    chosen = tuple(queries)
    gains, ideal = [], []
    for query in chosen:
        known = judgements.get(query, {})
        gains.append([max(known.get(id, 0), 0) for id in ranked(run.get(query, {}))])
        ideal.append(sorted((g for g in known.values() if g > 0), reverse=True))
    return Judged(chosen, _table(gains, -1), _table(ideal, 0))


def common(run: Run, judgements: Judgements) -> list[str]:
    """Lists the queries that trec_eval averages over: those that both sides have."""
    return [query for query in run if query in judgements]


# ── Measures: (judged, depth; None is the whole list) -> the value of each query ─────


def ndcg(judged: Judged, depth: int | None) -> Values:
    """Computes the normalised discounted cumulative gain (Järvelin, Kekäläinen 2002).

    A gain counts as it is, not as a power of 2, divided by log2(rank + 1); the sum is
    divided by that of the best list of the same depth.
    """

    def discounted(gains: np.ndarray) -> np.ndarray:
        cut = np.maximum(gains[:, :depth], 0)
        return cut @ (1 / np.log2(np.arange(cut.shape[1]) + 2))

    return _ratio(discounted(judged.gains), discounted(judged.ideal))


def average_precision(judged: Judged, depth: int | None) -> Values:
    """Computes the precision at each relevant document, averaged over all of them.

    One that was not found within the depth counts as 0.
    """
    hits = judged.gains[:, :depth] > 0
    precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return _ratio((precisions * hits).sum(axis=1), judged.relevant)


def reciprocal_rank(judged: Judged, depth: int | None) -> Values:
    """Computes 1 / the rank of the first relevant document; 0 if there is none."""
    hits = judged.gains[:, :depth] > 0
    if not hits.shape[1]:
        return np.zeros(len(hits))
    return hits.any(axis=1) / (hits.argmax(axis=1) + 1.0)


def recall(judged: Judged, depth: int | None) -> Values:
    """Computes the share of the relevant documents that were found."""
    return _ratio(_found(judged, depth), judged.relevant)


def precision(judged: Judged, depth: int | None) -> Values:
    """Computes the share of relevant ones among `depth` documents.

    A shorter list counts as if others that are not relevant filled it up.
    """
    whole = (judged.gains >= 0).sum(axis=1)
    return _ratio(_found(judged, depth), whole if depth is None else whole * 0 + depth)


def success(judged: Judged, depth: int | None) -> Values:
    """Tells whether a relevant document was found (1) or not (0)."""
    return np.minimum(_found(judged, depth), 1.0)


def r_precision(judged: Judged, depth: int | None) -> Values:
    """Computes the precision at the rank R, of R relevant documents."""
    hits = judged.gains[:, :depth] > 0
    within = np.arange(hits.shape[1]) < judged.relevant[:, None]
    return _ratio((hits & within).sum(axis=1), judged.relevant)


Measure = Callable[[Judged, int | None], Values]
MEASURES: dict[str, Measure] = {
    "ndcg": ndcg,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "recall": recall,
    "precision": precision,
    "success": success,
    "r_precision": r_precision,
}
FORM = re.compile(r"(\w+)(?:@([1-9][0-9]{0,5}))?")


def parse(name: str) -> tuple[Measure, int | None] | None:
    """Reads a name such as "ndcg@10" or "map"; None if it names no measure."""
    found = FORM.fullmatch(name)
    if found is None or found[1] not in MEASURES:
        return None
    return MEASURES[found[1]], int(found[2]) if found[2] else None


def compute(judged: Judged, names: Sequence[str]) -> dict[str, Values]:
    """Computes measures by name, of each query.

    Raises:
      ValueError: a name that `parse` does not know.
    """
    values = {}
    for name in names:
        found = parse(name)
        if found is None:
            raise ValueError(f"no measure {name!r}")
        measure, depth = found
        values[name] = measure(judged, depth)
    return values


def mean(
    values: Values, resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
    """Computes the mean over queries, and its bootstrap interval of 95 %."""
    if not len(values):
        return math.nan, Interval(math.nan, math.nan)
    interval = statistics.bootstrap(
        lambda rows: float(values[rows].mean()),
        len(values),
        resamples=resamples,
        seed=seed,
    )
    return float(values.mean()), interval


def _found(judged: Judged, depth: int | None) -> Values:
    return (judged.gains[:, :depth] > 0).sum(axis=1).astype(np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> Values:
    """Divides; 0 where there is nothing to be divided by."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def _table(lists: Sequence[Sequence[int]], end: int) -> Int[np.ndarray, "Q K"]:
    """Fills lists up with `end` to one length."""
    table = np.full((len(lists), max(map(len, lists), default=0)), end, np.int64)
    for row, one in enumerate(lists):
        table[row, : len(one)] = one
    return table
