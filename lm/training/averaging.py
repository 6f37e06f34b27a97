"""Averages of the parameters over the updates of a run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from lm.errors import ConfigError
from lm.training.guard import value_of

# (parameters, OptimState, the last average, the state's `average_from`) -> the average
# after an update.
Average = Callable[[PyTree, Any, PyTree, Any], PyTree]

NEVER = np.iinfo(np.int32).max


def plain(start: int | None) -> Average:
    """Returns the update of the average of the parameters after step `start`.

    Args:
      start: None is the state's `average_from`.
    """

    def average(params: PyTree, state: Any, last: PyTree, begins: Any) -> PyTree:
        first = begins if start is None else start
        share = 1.0 / jnp.maximum(jnp.asarray(state.count - first, jnp.float32), 1.0)
        return jax.tree.map(lambda a, p: a + share * (p - a), last, params)

    return average


def moving(decay: float) -> Average:
    """Returns the update of an exponential moving average of the parameters."""

    def average(params: PyTree, state: Any, last: PyTree, begins: Any) -> PyTree:
        count = jnp.asarray(state.count, jnp.float32)
        kept = jnp.minimum(decay, (1 + count) / (10 + count))
        return jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), last, params)

    return average


def chosen(optim: Any, *, itself: bool) -> Average | None:
    """Returns the average that a section `optim` asks for, None without one.

    Args:
      itself: whether its optimiser has an average of its own.

    Raises:
      ConfigError: more than one.
    """
    asked = {
        name: value
        for name in ("average_from", "average_when", "ema")
        if (value := getattr(optim, name)) is not None
    }
    if asked and len(asked) + itself > 1:
        (name, value), *rest = asked.items()
        others = "".join(f", {other}={value!r}" for other, value in rest)
        found = f"{value!r} with {optim.name}{others}"
        raise ConfigError(f"optim.{name}", found, "one kind of average")
    if optim.ema is not None:
        return moving(optim.ema)
    return plain(asked.get("average_from")) if asked else None


@dataclass(frozen=True)
class Trigger:
    """Decides when a plain average begins (NT-ASGD, Merity et al. 2018, Algorithm 1).

    It begins at the first evaluation whose figure is worse than the best of those
    before the last `patience`. Goes into the checkpoint as `asdict()`.

    Args:
      metric: "<eval>/<metric>", of which less is better; None: it never begins.
      patience: the number n of the algorithm.
      values: of the evaluations so far.
      step: where it has begun.
    """

    metric: str | None = None
    patience: int = 5
    values: tuple[float, ...] = ()
    step: int | None = None

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Trigger":
        """Returns the trigger of a config, before any evaluation.

        Raises:
          ConfigError: it waits for an evaluation that the config does not have.
        """
        metric, evals = config["optim"].get("average_when"), config["evals"]
        if metric is None:
            return Trigger()
        if metric.partition("/")[0] not in evals:
            expected = f"a metric of an evaluation ({', '.join(evals) or 'none'})"
            raise ConfigError("optim.average_when", repr(metric), expected)
        return Trigger(metric, config["optim"]["average_patience"])

    def observe(self, step: int, metrics: Mapping[str, Any]) -> "Trigger":
        """Returns the trigger after the row of `step`.

        A value that is not finite is worse than any other.

        Raises:
          ConfigError: the evaluation ran and has no metric of this name.
        """
        value = value_of(self.metric, metrics)
        if value is None or self.step is not None:
            return self
        before = self.values[: -self.patience]
        if before and not value <= min(before):
            return replace(self, step=step)
        value = value if math.isfinite(value) else NEVER
        return replace(self, values=(*self.values, value))

    def describe(self) -> str:
        """Describes why the average has begun, for the log."""
        return (
            f"the average of the weights begins, as {self.metric} has been no better "
            f"than {min(self.values[: -self.patience]):.6g} for {self.patience} "
            "evaluations (optim.average_when)"
        )

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {"metric": self.metric, "values": [*self.values], "step": self.step}

    def resume(self, saved: Mapping[str, Any] | None) -> "Trigger":
        """Restores what `asdict` returned, if it is of the same metric."""
        if not saved or saved["metric"] != self.metric:
            return self
        return replace(self, values=tuple(saved["values"]), step=saved["step"])


def begin(average_from: Int[Array, ""], step: int) -> Int[Array, ""]:
    """Returns a state's `average_from` whose average holds the parameters of `step`.

    Those of `step` are in it already: until it begins, the average is the parameters.
    """
    begins = jnp.minimum(average_from, step - 1)
    return jax.device_put(begins, average_from.sharding)
