"""Metrics that need every prediction of a set at once: F1, AUC and the like."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import PyTree

from lm.evaluators import base
from lm.metrics import classification


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Named metrics of lm.metrics.classification over the exact set.

    Attributes:
      metrics: their names.
    """

    metrics: tuple[Literal["accuracy", "precision", "recall", "f1", "auc"], ...] = (
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auc",
    )

    def run(self, tools: base.Tools, params: PyTree) -> Iterator[tuple[str, float]]:
        labels, probabilities = [], []
        for batch in tools.batches():
            batch, predictions = tools.predict(params, batch)
            real = np.asarray(batch["label_weights"]) > 0
            labels.append(np.asarray(batch["labels"])[real])
            probabilities.append(np.asarray(predictions["probabilities"])[real])
        known, guessed = np.concatenate(labels), np.concatenate(probabilities)
        for name in self.metrics:
            yield name, getattr(classification, name)(known, guessed)
