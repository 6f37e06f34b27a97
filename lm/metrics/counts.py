"""Counts of right and wrong predictions, from which many metrics follow."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# One class of each example, or which classes it has (1 or 0).
Labels = Int[np.ndarray, "n"] | Shaped[np.ndarray, "n classes"]
Probabilities = Float[np.ndarray, "n classes"]


class Counts(NamedTuple):
    """Examples of each class.

    Attributes:
      right: predicted as the class that they are of.
      predicted: predicted as the class.
      actual: of the class.
    """

    right: Int[np.ndarray, "classes"]
    predicted: Int[np.ndarray, "classes"]
    actual: Int[np.ndarray, "classes"]


def several(labels: Labels) -> bool:
    """Tells whether an example may be of several classes, or of none."""
    return labels.ndim == 2


def chosen(labels: Labels, probabilities: Probabilities) -> Bool[np.ndarray, "n C"]:
    """Returns which classes are predicted: those above 0.5, or the most probable."""
    if several(labels):
        return probabilities > 0.5
    return one_hot(probabilities.argmax(1), probabilities.shape[1])


def one_hot(ids: Int[np.ndarray, "n"], classes: int) -> Bool[np.ndarray, "n classes"]:
    """Returns which class each example has."""
    return ids[:, None] == np.arange(classes)


def actual(labels: Labels, classes: int) -> Bool[np.ndarray, "n classes"]:
    """Returns which classes each example is of."""
    return labels > 0.5 if several(labels) else one_hot(labels, classes)


def count(labels: Labels, probabilities: Probabilities) -> Counts:
    """Counts the examples of each class."""
    classes = probabilities.shape[1]
    if several(labels):
        guess, truth = chosen(labels, probabilities), actual(labels, classes)
        right = (guess & truth).sum(0)
        return Counts(right, guess.sum(0), truth.sum(0))
    table = confusion(labels, probabilities)
    return Counts(table.diagonal(), table.sum(0), table.sum(1))


def confusion(
    labels: Int[np.ndarray, "n"], probabilities: Probabilities
) -> Int[np.ndarray, "classes classes"]:
    """Counts the examples of each class (rows) by the predicted class (columns)."""
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
