"""How well the similarities of vectors agree with scores that people gave (STS)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from lm.evaluators import base, predictions
from lm.metrics import baselines, regression, statistics
from lm.objectives.base import Objective

WORDS = {"metrics": "metrics.regression:*"}
BOUNDS = {"level": "(0, 1)", "resamples": "[0, 100000]"}
CHANGEABLE = ("level", "resamples", "write")


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Correlations over all pairs of a set at once, with intervals.

    A metric is followed by `<metric>_low` and `<metric>_high`, the bootstrap interval
    over the pairs. What the overlap of the texts' tokens reaches (their Jaccard index)
    stands in the log, once.

    Attributes:
      metrics: names of public functions of lm/metrics/regression.py.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
      write: whether the similarities are written, to
        `predictions/<evaluation>-<step>.jsonl`; lm.compare reads them.
    """

    metrics: tuple[str, ...] = ("spearman", "pearson")
    level: float = 0.95
    resamples: int = 1000
    write: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"similarities"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = ("", "_low", "_high") if self.resamples else ("",)
        return tuple(name + end for name in self.metrics for end in ends)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        found = predictions.collect(examples, model)
        scores, labels = found.predictions["scores"], found.labels
        if not np.isfinite(scores).all():
            out.note("the similarities are not finite: nor are the metrics")
            yield from ((name, math.nan) for name in self.yields(examples.objective))
            return
        for name in self.metrics:
            metric = getattr(regression, name)
            value = metric(labels, scores)
            if math.isnan(value):
                out.note(f"{name} is not defined: the labels or the scores are equal")
            yield name, value
            if self.resamples:
                interval = statistics.bootstrap(
                    functools.partial(_measure, metric, labels, scores),
                    len(labels),
                    resamples=self.resamples,
                    level=self.level,
                    seed=self.seed,
                )
                yield from interval.named(name)
        if self.write and jax.process_index() == 0:
            predictions.write(examples, found, out)
        if not examples.memo.get("baseline"):
            examples.memo["baseline"] = True
            note_overlap(self.metrics, examples, found, out)


def _measure(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    scores: np.ndarray,
    numbers: np.ndarray,
) -> float:
    """Computes a metric of a resample of the pairs."""
    return metric(labels[numbers], scores[numbers])


def note_overlap(
    metrics: tuple[str, ...],
    examples: base.Examples,
    found: predictions.Found,
    out: base.Outputs,
) -> None:
    """Notes what the overlap of the tokens of two texts reaches on the set."""
    places = map(examples.stream.locate, found.rows.tolist())
    rows = [examples.stream.indices[s].row(row)["pieces"] for s, _, row in places]
    scores = baselines.overlap(rows)
    shown = "  ".join(
        f"{name} {getattr(regression, name)(found.labels, scores):.4f}"
        for name in metrics
    )
    out.note(f"{out.samples.stem.rpartition('-')[0]} by overlap of tokens: {shown}")
