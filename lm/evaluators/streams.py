"""What evaluators of a stream have in common: rules, and the state that is carried."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from lm.errors import Rule
from lm.evaluators import base
from lm.metrics import statistics
from lm.objectives.base import Batch

BOUNDS = {"level": "(0, 1)", "resamples": "[0, 100000]"}
CHANGEABLE = ("level", "resamples")
ENDS = ("loss_low", "loss_high", "perplexity_low", "perplexity_high")


@dataclasses.dataclass(frozen=True)
class StreamEvaluator(base.Evaluator):
    """The base of evaluators that read a text in order, with data.order="stream".

    `loss` and `perplexity` have with _low and _high after them the bounds of the
    bootstrap interval over the rows, which are taken as independent.

    Attributes:
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
    """

    level: float = 0.95
    resamples: int = 1000

    def bounds(self, parts: Float[np.ndarray, "n 2"]) -> Iterator[tuple[str, float]]:
        """Yields the bounds of the interval, ENDS.

        Args:
          parts: of each row, the sum of the loss of its targets, and their number.
        """
        if self.resamples:
            parts = statistics.grouped(parts)
            drawn = statistics.draw(parts, self.resamples, self.seed)
            ends = statistics.percentiles(statistics.ratios(drawn), self.level)
            perplexities = (math.exp(min(end, 700.0)) for end in ends)
            yield from zip(ENDS, (*ends, *perplexities))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tokens", "hidden"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        yield Rule(
            self.data.get("order") == "stream",
            f"{where}.data.order",
            repr(self.data.get("order", "shuffled")),
            "'stream', since each batch goes on where the last one ended",
            f"set {where}.data.order=stream.",
        )


def start(module: Any, rows: int) -> PyTree:
    """Returns the state of a model before any text; {} if it carries none."""
    if "carry" not in module.can:
        return {}
    return module.apply({}, rows, method="make_carry")


def apply(
    module: Any, params: PyTree, carried: PyTree, batch: Batch, method: Callable
) -> tuple[Any, PyTree]:
    """Applies a function of (bound model, batch), and returns the state after it."""
    carry = {"carry": carried} if carried else {}
    variables = {"params": params} | carry
    found, left = module.apply(variables, batch, method=method, mutable=list(carry))
    return found, left.get("carry", {})
