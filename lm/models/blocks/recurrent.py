"""A layer of a recurrent network, over lm.ops.recurrence."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from lm.models.base import Compute
from lm.models.blocks.layers import Dense, Dropout, constrain
from lm.ops.dropout import dropout
from lm.ops.recurrence import CELLS, Boundaries, backward, recur


@dataclasses.dataclass(frozen=True)
class Shape:
    """The options that all layers of a network share; see lm.models.rnn.Model."""

    cell: str
    bidirectional: bool
    locked: bool
    dropout_weight: float
    init_std: float
    compute: Compute


class Layer(nn.Module):
    """Computes a recurrent layer; all tokens share one product with the inputs.

    In both directions each has half of the units.

    Attributes:
      inputs: size of an input.
      dim: number of units.
      dropout: of the inputs.
    """

    shape: Shape
    inputs: int
    dim: int
    dropout: float

    def setup(self):
        shape = self.shape
        units = self.dim // 2 if shape.bidirectional else self.dim

        def dense(inputs: int) -> Dense:
            axes, sizes = ("embed", None, "mlp"), (CELLS[shape.cell].gates, units)
            return Dense((inputs,), sizes, axes, shape.init_std, shape.compute)

        self.input, self.recurrent = dense(self.inputs), dense(units)
        if shape.bidirectional:
            self.backward_input = dense(self.inputs)
            self.backward_recurrent = dense(units)
        self.drop = Dropout(self.dropout, shape.locked)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        state: PyTree,
        dropped: Bool[Array, ""] | None,
        bounds: Boundaries,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        """Computes the states after each token, and those after the last.

        Args:
          dropped: whether the inputs have had their dropout already; None is False.
        """
        given = self.drop(x, train=train)
        x = given if dropped is None else jnp.where(dropped, x, given)
        if self.shape.bidirectional:
            one, other = (
                {name: halves(part)[n] for name, part in state.items()}
                for n in range(2)
            )
            there, _ = self._recur(self.input, self.recurrent, x, one, bounds, train)
            parts = self.backward_input, self.backward_recurrent
            turned = jnp.flip(x, axis=1)
            back, _ = self._recur(*parts, turned, other, backward(bounds), train)
            x = jnp.concatenate([there, jnp.flip(back, axis=1)], axis=-1)
        else:
            x, state = self._recur(self.input, self.recurrent, x, state, bounds, train)
        return constrain(x, self.shape.compute.rules, "batch", None, None), state

    def _recur(
        self,
        into: Dense,
        recurrent: Dense,
        x: jax.Array,
        state: PyTree,
        bounds: Boundaries,
        train: bool,
    ) -> tuple[jax.Array, PyTree]:
        shape, kernel = self.shape, recurrent.kernel
        if train and shape.dropout_weight:
            key = self.make_rng("dropout")
            kernel = dropout(kernel, rate=shape.dropout_weight, key=key)
        # Gather a sharded kernel once here, not at every token.
        kernel = constrain(kernel, shape.compute.rules, None, None, None)
        options = {"precision": shape.compute.precision}
        bias = recurrent.bias
        return recur(shape.cell, into(x), kernel, bias, state, bounds, **options)


def halves(x: Float[Array, "*any D"]) -> list[jax.Array]:
    """Splits states into those of the two directions."""
    return jnp.split(x, 2, axis=-1)
