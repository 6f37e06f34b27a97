"""The contract of an update: how the gradient of a step is made."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lm.errors import Rule


class Rows(NamedTuple):
    """The arrays with a row for each example, which micro-batches are cut from.

    Attributes:
      batch: the batch.
      carried: the model's state after the previous rows; {} if it carries none.
    """

    batch: dict[str, Array]
    carried: PyTree


# (params, rows, totals, key) -> (value, (means, carried)). The value is the sum over
# terms of sum / total, so that the values of micro-batches add up to the batch's.
Loss = Callable[[PyTree, Rows, dict, Array], tuple[Array, tuple[dict, PyTree]]]


@dataclasses.dataclass(frozen=True)
class Update(abc.ABC):
    """The base of every update: a class `Update` in a file of `lm/updates`.

    It makes the gradient of a step. The fields of a subclass are `config.update`.

    Attributes:
      divides: whether it computes the loss of a part of the rows without the others,
        such as the gradient of each row apart. An objective whose examples interact is
        then refused. `grad_accum` is checked without it.
      in_place: whether it changes the parameters itself, by its methods `start` and
        `sweep` (lm/updates/rows.py), instead of an optimiser over all of them. The
        gradient is then only for the diagnosis of a fault.
      needs: abilities that the objective must have.
    """

    divides: ClassVar[bool] = False
    in_place: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        """Yields the conditions on the rest of the config."""
        yield from ()

    @abc.abstractmethod
    def __call__(
        self,
        loss: Loss,
        params: PyTree,
        rows: Rows,
        totals: dict[str, Array],
        key: Array,
        parts: int,
    ) -> tuple[Array, tuple[dict[str, Array], PyTree], PyTree]:
        """Returns (loss, (means of its terms, state carried on), gradients).

        Pure, and compiled as part of the step.

        Args:
          loss: of some rows; the key seeds its dropout.
          params: the parameters to differentiate with respect to.
          rows: the rows of the whole step.
          totals: the count of each term over the whole step.
          key: of this step alone.
          parts: micro-batches (`config.grad_accum`); see `accumulate`.
        """


def accumulate(
    function: Callable[[PyTree, Rows, dict, Array], Any],
    params: PyTree,
    rows: Rows,
    totals: dict[str, Array],
    key: Array,
    parts: int,
) -> Any:
    """Adds up a function of (params, rows, totals, key) over micro-batches.

    Args:
      function: returns ((value, (means, carried)), gradients), each but `carried` a sum
        over its rows.
      parts: 1 calls it once, with the key as it is; else each micro-batch has its own.

    Returns:
      What the function returns for all rows; `carried` has the rows' order.
    """
    if parts == 1:
        return function(params, rows, totals, key)

    def add(sums: Any, number_and_part: tuple[Array, Rows]) -> tuple[Any, PyTree]:
        number, part = number_and_part
        found = function(params, part, totals, jax.random.fold_in(key, number))
        ((value, (means, carried)), grads) = found
        sums = jax.tree.map(jnp.add, sums, ((value, means), grads))
        return sums, carried

    cut = jax.tree.map(lambda x: _split(x, parts), rows)
    (value, (means, _)), grads = jax.eval_shape(function, params, rows, totals, key)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), ((value, means), grads)
    )
    ((value, means), grads), carried = jax.lax.scan(
        add, zeros, (jnp.arange(parts), cut)
    )
    return (value, (means, jax.tree.map(_join, carried))), grads


def _split(x: Array, parts: int) -> Array:
    """Splits (B, ...) into (parts, B / parts, ...); no row changes its device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _join(x: Array) -> Array:
    """Joins (parts, B / parts, ...) to (B, ...), the reverse of `_split`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
