"""Metrics of classification over a whole set.

Each public function is a metric: (labels, probabilities (n, classes)) -> value. Labels
are class ids (n,), or 0 and 1 for each class (n, classes) where an example may have
several. With two classes and one label, precision, recall, F1, average precision and
AUC are those of class 1; otherwise they are the unweighted mean over the classes. A
metric that is not defined is NaN.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from lm.metrics import counts
from lm.metrics.counts import Labels, Probabilities

PerClass = Float[np.ndarray, "classes"]


def accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the examples whose classes are all predicted."""
    if counts.several(labels):
        right = counts.chosen(labels, probabilities) == (labels > 0.5)
        return float(right.all(1).mean())
    return float(np.mean(probabilities.argmax(1) == labels))


def balanced_accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean recall of the classes that have examples."""
    found = counts.count(labels, probabilities)
    held = found.actual > 0
    return float(np.mean(found.right[held] / found.actual[held]))


def precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the predictions of a class that are right."""
    return _one(labels, _rates(labels, probabilities)[0])


def recall(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the examples of a class that are predicted as it."""
    return _one(labels, _rates(labels, probabilities)[1])


def f1(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the harmonic mean of precision and recall."""
    return _one(labels, _rates(labels, probabilities)[2])


def macro_precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean precision of all classes."""
    return float(_rates(labels, probabilities)[0].mean())


def macro_recall(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean recall of all classes."""
    return float(_rates(labels, probabilities)[1].mean())


def macro_f1(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean F1 of all classes."""
    return float(_rates(labels, probabilities)[2].mean())


def micro_precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the precision over the predictions of all classes together."""
    found = counts.count(labels, probabilities)
    return float(_ratio(found.right.sum(), found.predicted.sum()))


def micro_recall(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the recall over the labels of all classes together."""
    found = counts.count(labels, probabilities)
    return float(_ratio(found.right.sum(), found.actual.sum()))


def micro_f1(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the F1 over all classes together; the accuracy of single labels."""
    found = counts.count(labels, probabilities)
    total = found.predicted.sum() + found.actual.sum()
    return float(_ratio(2 * found.right.sum(), total))


def weighted_precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean precision, each class weighted by its examples."""
    return _weighted(labels, probabilities, 0)


def weighted_recall(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean recall, each class weighted by its examples."""
    return _weighted(labels, probabilities, 1)


def weighted_f1(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean F1, each class weighted by its examples."""
    return _weighted(labels, probabilities, 2)


def matthews(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the Matthews correlation of single labels (Gorodkin 2004); 0 of one."""
    if counts.several(labels):
        return math.nan
    right, predicted, actual = counts.count(labels, probabilities)
    n = actual.sum()
    covariance = right.sum() * n - predicted @ actual
    spread = float(n**2 - predicted @ predicted) * float(n**2 - actual @ actual)
    return float(covariance / math.sqrt(spread)) if spread else 0.0


def kappa(labels: Labels, probabilities: Probabilities) -> float:
    """Computes Cohen's kappa (1960) of single labels."""
    if counts.several(labels):
        return math.nan
    right, predicted, actual = counts.count(labels, probabilities)
    n = actual.sum()
    by_chance = float(predicted @ actual) / n**2
    return float((right.sum() / n - by_chance) / (1 - by_chance or math.nan))


def auc(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the area under the ROC curve; NaN if a class has no example, or all."""
    truth = counts.actual(labels, probabilities.shape[1])
    return _one(labels, _each(truth, probabilities, _area))


def average_precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the sum over thresholds of (gain in recall) x precision."""
    truth = counts.actual(labels, probabilities.shape[1])
    return _one(labels, _each(truth, probabilities, _average_precision))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the mean of -log p in nats; of several labels, over all classes too."""
    least = np.finfo(np.float64).eps
    wide = probabilities.astype(np.float64)
    if counts.several(labels):
        kept = np.where(labels > 0.5, wide, 1 - wide)
        return float(-np.log(np.clip(kept, least, 1)).mean())
    # A softmax in float32 sums to 1 within 1e-6 only.
    kept = np.take_along_axis(wide, labels[:, None], 1)[:, 0] / wide.sum(1)
    return float(-np.log(np.clip(kept, least, 1)).mean())


def brier(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the squared error of the probabilities, summed over the classes."""
    truth = counts.actual(labels, probabilities.shape[1])
    return float(np.square(probabilities - truth).sum(1).mean())


def ece(labels: Labels, probabilities: Probabilities, bins: int = 15) -> float:
    """Computes the expected calibration error of the highest probability.

    Over bins of equal width, open on the left (Guo et al. 2017, equation 3), it is the
    mean distance of accuracy and probability. For single labels.
    """
    if counts.several(labels):
        return math.nan
    sure = probabilities.max(1).astype(np.float64)
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return _calibration(labels, probabilities, places, bins)


def ece_mass(labels: Labels, probabilities: Probabilities, bins: int = 15) -> float:
    """Computes `ece` over bins that hold equally many examples (Nixon et al. 2019)."""
    if counts.several(labels):
        return math.nan
    places = np.empty(len(labels), int)
    order = np.argsort(probabilities.max(1), kind="stable")
    for number, part in enumerate(np.array_split(order, bins)):
        places[part] = number
    return _calibration(labels, probabilities, places, bins)


def _calibration(labels, probabilities, places, bins: int) -> float:
    right = probabilities.argmax(1) == labels
    sums = np.bincount(places, right - probabilities.max(1).astype(np.float64), bins)
    return float(np.abs(sums).sum() / len(labels))


def _rates(
    labels: Labels, probabilities: Probabilities
) -> tuple[PerClass, PerClass, PerClass]:
    """Returns precision, recall and F1 of each class, 0 where nothing is counted."""
    right, predicted, actual = counts.count(labels, probabilities)
    return (
        _ratio(right, predicted),
        _ratio(right, actual),
        _ratio(2 * right, predicted + actual),
    )


def _ratio(part: Any, whole: Any) -> Float[np.ndarray, "*any"]:
    """Divides; 0 / 0 is 0."""
    return np.asarray(part / np.maximum(whole, 1), np.float64)


def _one(labels: Labels, values: PerClass) -> float:
    """Returns the value of class 1 of two, or the mean over the classes."""
    two = len(values) == 2 and not counts.several(labels)
    return float(values[1] if two else values.mean())


def _weighted(labels: Labels, probabilities: Probabilities, which: int) -> float:
    share = counts.count(labels, probabilities).actual
    values = _rates(labels, probabilities)[which]
    return float(values @ share / max(share.sum(), 1))


def _each(truth, probabilities, measure) -> PerClass:
    """Computes a measure of (is of the class, score) for each class."""
    columns = zip(truth.T, probabilities.T.astype(np.float64))
    return np.array([measure(is_of, score) for is_of, score in columns])


def _area(truth: Shaped[np.ndarray, "n"], scores: Shaped[np.ndarray, "n"]) -> float:
    """Computes the AUC by the ranks of the examples of a class (Mann-Whitney)."""
    inside = int(truth.sum())
    outside = len(truth) - inside
    if not inside or not outside:
        return math.nan
    values, place = np.unique(scores, return_inverse=True)
    held = np.bincount(place, minlength=len(values))
    ranks = np.cumsum(held) - (held - 1) / 2  # of ties, the mean
    total = float(ranks[place[truth]].sum())
    return (total - inside * (inside + 1) / 2) / (inside * outside)


def _average_precision(
    truth: Shaped[np.ndarray, "n"], scores: Shaped[np.ndarray, "n"]
) -> float:
    if not truth.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-math.inf))  # of equal scores
    right = np.cumsum(truth[order])[last]
    gained = np.diff(right, prepend=0) / truth.sum()
    return float(np.sum(gained * right / (last + 1)))
