"""What evaluators of a stream have in common: rules, and the state that is carried."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import PyTree

from lm.errors import Rule
from lm.evaluators import base
from lm.objectives.base import Batch


@dataclasses.dataclass(frozen=True)
class StreamEvaluator(base.Evaluator):
    """The base of evaluators that read a text in order, with data.order="stream"."""

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
