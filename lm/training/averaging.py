"""Averages of the parameters over the updates of a run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# (parameters, OptimState, the last average) -> the average after an update.
Average = Callable[[PyTree, Any, PyTree], PyTree]


def plain(start: int) -> Average:
    """Returns the update of the average of the parameters after step `start`."""

    def average(params: PyTree, state: Any, last: PyTree) -> PyTree:
        share = 1.0 / jnp.maximum(jnp.asarray(state.count - start, jnp.float32), 1.0)
        return jax.tree.map(lambda a, p: a + share * (p - a), last, params)

    return average


def moving(decay: float) -> Average:
    """Returns the update of an exponential moving average of the parameters."""

    def average(params: PyTree, state: Any, last: PyTree) -> PyTree:
        count = jnp.asarray(state.count, jnp.float32)
        kept = jnp.minimum(decay, (1 + count) / (10 + count))
        return jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), last, params)

    return average
