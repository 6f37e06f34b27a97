"""Metrics of predicted numbers over a whole set.

Each public function is a metric: (labels (n,), scores (n,)) -> value. A metric that is
not defined, such as a correlation with equal scores, is NaN.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "n"]


def pearson(labels: Numbers, scores: Numbers) -> float:
    """Computes the correlation of the numbers."""
    x, y = _centred(labels), _centred(scores)
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread else math.nan


def spearman(labels: Numbers, scores: Numbers) -> float:
    """Computes the correlation of the ranks; of equal numbers, the mean rank."""
    return pearson(_ranks(labels), _ranks(scores))


def kendall(labels: Numbers, scores: Numbers) -> float:
    """Computes Kendall's tau b: pairs in the same order less those in the other."""
    from scipy import stats

    found: Any = stats.kendalltau(labels, scores)
    return float(found.statistic)


def mse(labels: Numbers, scores: Numbers) -> float:
    """Computes the mean squared error."""
    return float(np.mean(np.square(_wide(labels) - _wide(scores))))


def mae(labels: Numbers, scores: Numbers) -> float:
    """Computes the mean absolute error."""
    return float(np.mean(np.abs(_wide(labels) - _wide(scores))))


def r2(labels: Numbers, scores: Numbers) -> float:
    """Computes the share of the variance of the labels that the scores explain."""
    x = _centred(labels)
    error = np.square(_wide(labels) - _wide(scores)).sum()
    return float(1 - error / float(x @ x)) if x.any() else math.nan


def _wide(numbers: Numbers) -> Numbers:
    return numbers.astype(np.float64)


def _centred(numbers: Numbers) -> Numbers:
    wide = _wide(numbers)
    return wide - wide.mean()


def _ranks(numbers: Numbers) -> Numbers:
    _, place, held = np.unique(numbers, return_inverse=True, return_counts=True)
    return (np.cumsum(held) - (held - 1) / 2)[place]
