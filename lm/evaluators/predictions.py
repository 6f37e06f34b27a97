"""Metrics that need all predictions of a set at once, such as F1 and AUC."""

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
    """Metrics of lm/metrics/classification.py over the set, without padding rows.

    Attributes:
      metrics: names of public functions of that file.
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
        known, predicted = np.concatenate(labels), np.concatenate(probabilities)
        if not np.isfinite(predicted).all():
            out.note("the model's probabilities are not finite: nor are the metrics")
            yield from ((name, math.nan) for name in self.metrics)
            return
        for name in self.metrics:
            value = getattr(classification, name)(known, predicted)
            if math.isnan(value):
                found = describe_classes(known, predicted)
                out.note(f"{name} is not defined here: {found}")
            yield name, value


def describe_classes(labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Lists classes without examples; if there are none, the examples per class."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    absent = ", ".join(map(str, np.flatnonzero(counts == 0)[:10]))
    return f"no example of class {absent}" if absent else f"{counts.tolist()} examples"
