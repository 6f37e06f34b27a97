"""Sums of a few rows of a table for each word, and a fast gradient of the table."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Sorted(NamedTuple):
    """The rows of a table that words ask for, in the order of the table.

    Attributes:
      rows: sorted.
      words: by which word each is asked for.
    """

    rows: Int[Any, "N"]
    words: Int[Any, "N"]


def by_row(at: Int[np.ndarray, "*any M"], rows: int) -> Sorted:
    """Sorts what words ask for; places outside the table are left out."""
    flat = at.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[: np.searchsorted(flat[order], rows)]
    words = order // at.shape[-1]
    return Sorted(flat[order].astype(np.int32), words.astype(np.int32))


def row_sums(
    table: Float[Array, "F C"], at: Int[Array, "*any M"]
) -> Float[Array, "*any C"]:
    """Adds up M rows of the table for each word; F stands for none."""

    def add(total: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        # A place outside gives zeros, and its gradient goes nowhere.
        return total + table.at[at].get(mode="fill", fill_value=0.0), None

    zeros = jnp.zeros((*at.shape[:-1], table.shape[1]), table.dtype)
    return jax.lax.scan(add, zeros, jnp.moveaxis(at, -1, 0))[0]


@jax.custom_vjp
def sorted_row_sums(
    table: Float[Array, "F C"], at: Int[Array, "*any M"], order: Sorted
) -> Float[Array, "*any C"]:
    """Computes `row_sums`, and the gradient of the table row by row.

    Args:
      order: of `by_row`.
    """
    return row_sums(table, at)


def _forward(table: Any, at: Any, order: Sorted) -> tuple[jax.Array, tuple]:
    return row_sums(table, at), (table, order)


def _backward(kept: tuple, gradient: Float[Array, "*any C"]) -> tuple:
    table, order = kept
    each = gradient.reshape(-1, gradient.shape[-1])[order.words]
    made = jnp.zeros_like(table)
    return made.at[order.rows].add(each, indices_are_sorted=True), None, None


sorted_row_sums.defvjp(_forward, _backward)
