"""Passes over an evaluation set, and what each row of a batch adds to a metric."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lm.updates.base import Rows

Batch = dict[str, Array]
Terms = dict[str, tuple[Array, Array]]  # {metric: (sum, count)}
# The terms of a batch, and {metric: (sums (B,), counts (B,))}.
ByRow = tuple[Terms, dict[str, tuple[Float[Array, "B"], Float[Array, "B"]]]]


class Passes(NamedTuple):
    """Functions that begin a pass over an evaluation set: params -> (batch -> result).

    The results are those of the functions of `Program` with the same names.
    """

    metrics: Callable[[PyTree], Callable[[Batch], Terms]]
    by_row: Callable[[PyTree], Callable[[Batch], ByRow]]
    predict: Callable[[PyTree], Callable[[Batch], tuple[Batch, dict[str, Array]]]]


def begin(program: Any, carried: int = 0) -> Passes:
    """Returns the functions of passes over an evaluation set.

    Args:
      program: of `lm.training.step`.
      carried: rows of the state that the model carries from one batch to the next; 0:
        it carries none. Another pass may follow with the same function: positions
        begin at 0, where a model forgets.
    """
    names = Passes._fields
    if not carried:

        def alone(function: Callable) -> Callable:
            return lambda params: functools.partial(function, params)

        return Passes(*(alone(getattr(program, name)) for name in names))

    def going_on(function: Callable[[PyTree, Rows], tuple]) -> Callable:
        def start(params: PyTree) -> Callable[[Batch], Any]:
            state: Any = None

            def call(batch: Batch) -> Any:
                nonlocal state
                if state is None:
                    state = program.continued.start(carried)
                found, state = function(params, Rows(batch, state))
                return found

            return call

        return start

    return Passes(*(going_on(getattr(program.continued, name)) for name in names))


def referred(model: Any, objective: Any, params: PyTree, rows: Rows) -> Rows:
    """Adds to a batch what the frozen reference says of it, for an objective that asks.

    Args:
      params: of the model, with its base.
    """
    if "reference" not in objective.can:
        return rows
    said = model.reference(
        {"params": params}, rows.batch, method=lambda m, b: objective.refer(m, b)
    )
    return rows._replace(batch=rows.batch | jax.lax.stop_gradient(said))


def by_row(
    metrics: Callable[[Rows], tuple[Terms, PyTree]], rows: Rows
) -> tuple[ByRow, PyTree]:
    """Computes metrics, and what each row adds to their sums and counts.

    What is summed is multiplied by an array whose name ends in "weights" (the contract
    of lm/objectives/base.py). So the share of a row is the derivative by a factor of
    its weights, and costs next to nothing: the model does not depend on that factor.
    Where an objective sums otherwise, the shares do not add up to the sums.

    Args:
      metrics: rows -> {metric: (sum, count)}, and the model's state after the rows.

    Returns:
      Both, and that state.
    """

    def scaled(factors: Float[Array, "B"]) -> tuple[list[Array], tuple]:
        batch = {
            name: _times(array, factors) if name.endswith("weights") else array
            for name, array in rows.batch.items()
        }
        terms, carried = metrics(rows._replace(batch=batch))
        leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(terms)]
        return leaves, (terms, carried)

    count = len(next(iter(rows.batch.values())))
    leaves, pull, (terms, carried) = jax.vjp(scaled, jnp.ones(count), has_aux=True)
    shares = []
    for place in range(len(leaves)):
        one = [jnp.float32(place == n) for n in range(len(leaves))]
        shares += pull(one)
    return (terms, jax.tree.unflatten(jax.tree.structure(terms), shares)), carried


def _times(array: Array, factors: Float[Array, "B"]) -> Array:
    """Multiplies the rows of an array by factors."""
    return array * factors.reshape(-1, *[1] * (array.ndim - 1))
