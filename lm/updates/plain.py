"""The gradient of the batch, by micro-batches where `grad_accum` cuts it."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, PyTree

from lm.updates import base
from lm.updates.base import Loss, Rows, accumulate


@dataclasses.dataclass(frozen=True)
class Update(base.Update):
    """Differentiates the loss with respect to the parameters."""

    def __call__(
        self,
        loss: Loss,
        params: PyTree,
        rows: Rows,
        totals: dict[str, Array],
        key: Array,
        parts: int,
    ) -> tuple[Array, tuple[dict[str, Array], Any], PyTree]:
        """Returns (loss, (means of its terms, state carried on), gradients)."""
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = accumulate(gradient, params, rows, totals, key, parts)
        return value, aux, grads
