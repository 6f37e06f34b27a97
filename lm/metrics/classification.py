"""Metrics of classification over a whole set, by scikit-learn.

Each takes labels (n,) and probabilities (n, classes). With two classes, precision,
recall, F1 and AUC are those of class 1; with more they are the unweighted mean over the
classes (macro average; AUC of each class against the rest).
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Labels = Int[np.ndarray, "n"]
Probabilities = Float[np.ndarray, "n classes"]


def _settings(probabilities: Probabilities) -> dict[str, Any]:
    """Returns the arguments of averaged metrics; a class never predicted scores 0."""
    classes = probabilities.shape[1]
    average = "binary" if classes == 2 else "macro"
    return {"labels": range(classes), "average": average, "zero_division": 0}


def accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the examples whose most probable class is their label."""
    from sklearn import metrics

    return float(metrics.accuracy_score(labels, probabilities.argmax(1)))


def precision(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the predictions of a class that are right."""
    from sklearn import metrics

    guesses = probabilities.argmax(1)
    return float(metrics.precision_score(labels, guesses, **_settings(probabilities)))


def recall(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the share of the examples of a class that are predicted as it."""
    from sklearn import metrics

    guesses = probabilities.argmax(1)
    return float(metrics.recall_score(labels, guesses, **_settings(probabilities)))


def f1(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the harmonic mean of precision and recall."""
    from sklearn import metrics

    guesses = probabilities.argmax(1)
    return float(metrics.f1_score(labels, guesses, **_settings(probabilities)))


def auc(labels: Labels, probabilities: Probabilities) -> float:
    """Computes the area under the ROC curve; NaN if a class has no example."""
    from sklearn import metrics

    if len(np.unique(labels)) < probabilities.shape[1]:
        return float("nan")
    # A softmax in float32 sums to 1 within 1e-6, which scikit-learn rejects.
    scores = probabilities.astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    with warnings.catch_warnings(action="ignore"):
        if scores.shape[1] == 2:
            return float(metrics.roc_auc_score(labels, scores[:, 1]))
        return float(metrics.roc_auc_score(labels, scores, multi_class="ovr"))
