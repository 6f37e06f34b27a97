"""Recurrent cells, and a scan of one over the tokens of packed rows.

A cell makes the next state of a token's gates: those of the input, `x`, and those of
the state before, `h`, both (B, G, D) float32, with G gates of D units.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = dict[str, Float[Array, "B D"]]  # "h" is what the layer gives


def elman(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """The simple recurrent network, with tanh (Elman 1990)."""
    return {"h": jnp.tanh(x + h)[:, 0]}


def gru(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """The gated recurrent unit: reset, update, candidate (Cho et al. 2014, eq. 5 to 8).

    The reset gate is applied after the product with the state, as the kernels of cuDNN
    have it.
    """
    reset, update = (jax.nn.sigmoid(x[:, i] + h[:, i]) for i in range(2))
    candidate = jnp.tanh(x[:, 2] + reset * h[:, 2])
    return {"h": (1.0 - update) * candidate + update * state["h"]}


def lstm(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """Long short-term memory: input, forget, cell, output (Hochreiter and Schmidhuber
    1997; Gers et al. 2000).

    The forget gate has 1 added, so that a new model remembers (Jozefowicz et al. 2015).
    """
    gates = x + h
    keep = jax.nn.sigmoid(gates[:, 1] + 1.0) * state["c"]
    cell = keep + jax.nn.sigmoid(gates[:, 0]) * jnp.tanh(gates[:, 2])
    return {"h": jax.nn.sigmoid(gates[:, 3]) * jnp.tanh(cell), "c": cell}


class Cell(NamedTuple):
    """A cell: its function, the number of its gates, and the parts of its state."""

    advance: Callable[[jax.Array, jax.Array, State], State]
    gates: int
    parts: tuple[str, ...] = ("h",)


CELLS = {
    "elman": Cell(elman, 1),
    "gru": Cell(gru, 3),
    "lstm": Cell(lstm, 4, ("h", "c")),
}


class Marks(NamedTuple):
    """What a scan over tokens depends on beside the tokens.

    Attributes:
      begins: (B, T) whether a text begins here, so that the state before it is zeros.
      real: (B, T) whether the token is no padding, which leaves the state as it is.
    """

    begins: Bool[Array, "B T"]
    real: Bool[Array, "B T"]


def marks(positions: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Marks:
    """Finds where texts begin: at position 0, and where a row's next segment does.

    The first segment of a row that begins at another position goes on from the state
    that the row is given.
    """
    real = segments != 0
    latest = jax.lax.cummax(segments, axis=1)
    before = jnp.pad(latest, ((0, 0), (1, 0)))[:, :-1]
    begins = (positions == 0) | ((before != 0) & (segments != before))
    return Marks(real & begins, real)


def recur(
    cell: str,
    inputs: Float[Array, "B T G D"],
    kernel: Float[Array, "D G D"],
    bias: Float[Array, "G D"],
    state: State,
    marks: Marks,
    *,
    precision: str | None = None,
) -> tuple[Float[Array, "B T D"], State]:
    """Runs a cell over the tokens of each row, one after the other.

    Args:
      cell: a key of CELLS.
      inputs: the gates of the inputs, of all tokens; their dtype is that of products.
      kernel, bias: from the state to its gates.
      state: before the first token, float32.

    Returns:
      The state `h` after each token in the dtype of the inputs, and the last state.
    """
    dtype, advance = inputs.dtype, CELLS[cell].advance
    kernel = kernel.astype(dtype)

    def step(state: State, token: tuple) -> tuple[State, jax.Array]:
        x, begins, real = token
        state = {name: jnp.where(begins, 0.0, part) for name, part in state.items()}
        gates = jnp.einsum(
            "bd,dge->bge",
            state["h"].astype(dtype),
            kernel,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        new = advance(x.astype(jnp.float32), gates + bias, state)
        state = {name: jnp.where(real, new[name], part) for name, part in state.items()}
        return state, state["h"].astype(dtype)

    columns = (jnp.swapaxes(column, 0, 1)[..., None] for column in marks)
    state, hidden = jax.lax.scan(step, state, (jnp.swapaxes(inputs, 0, 1), *columns))
    return jnp.swapaxes(hidden, 0, 1), state
