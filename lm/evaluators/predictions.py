"""Metrics that need every prediction of a set at once: F1, AUC and the like."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from lm.evaluators import base
from lm.metrics import classification
from lm.objectives.base import Objective

WORDS = {"metrics": "metrics.classification:*"}


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Named metrics of lm/metrics/classification.py over the exact set.

    Attributes:
      metrics: their names: each public function of that file is one.
    """

    metrics: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "auc")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"classes"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        return self.metrics

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        labels, probabilities = [], []
        for batch in examples.batches():
            batch, predictions = model.predict(batch)
            real = np.asarray(batch["label_weights"]) > 0
            labels.append(np.asarray(batch["labels"])[real])
            probabilities.append(np.asarray(predictions["probabilities"])[real])
        known, guessed = np.concatenate(labels), np.concatenate(probabilities)
        if not np.isfinite(guessed).all():
            out.note("the model's probabilities are not finite: nor are the metrics")
            yield from ((name, math.nan) for name in self.metrics)
            return
        for name in self.metrics:
            value = getattr(classification, name)(known, guessed)
            if math.isnan(value):
                out.note(f"{name} is not defined here: {classes_of(known, guessed)}")
            yield name, value


def classes_of(labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Describes how many examples each class has, the absent ones by name."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    absent = ", ".join(map(str, np.flatnonzero(counts == 0)[:10]))
    return f"no example of class {absent}" if absent else f"{counts.tolist()} examples"
