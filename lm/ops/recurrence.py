"""Recurrent cells, and a scan of a cell over the tokens of packed rows.

A cell computes the next state from the preactivations of its gates: those of the input,
`x`, and those of the previous state, `h`, both (B, G, D) float32, with G gates of D
units.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = dict[str, Float[Array, "B D"]]  # "h" is the output of the layer


def elman(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """Computes a simple recurrent network, with tanh (Elman 1990)."""
    return {"h": jnp.tanh(x + h)[:, 0]}


def elman_relu(
    x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State
) -> State:
    """Computes a simple recurrent network, with a rectifier (Le et al. 2015)."""
    return {"h": jax.nn.relu(x + h)[:, 0]}


def gru(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """Computes a gated recurrent unit (Cho et al. 2014, equations 5 to 8).

    Its gates are reset, update, candidate. The reset gate is applied after the product
    with the state, as in the kernels of cuDNN.
    """
    reset, update = (jax.nn.sigmoid(x[:, i] + h[:, i]) for i in range(2))
    candidate = jnp.tanh(x[:, 2] + reset * h[:, 2])
    return {"h": (1.0 - update) * candidate + update * state["h"]}


def lstm(x: Float[Array, "B G D"], h: Float[Array, "B G D"], state: State) -> State:
    """Computes a long short-term memory (Hochreiter and Schmidhuber 1997).

    Its gates are input, forget (Gers et al. 2000), cell, output. The forget gate has 1
    added, so that a new model remembers (Jozefowicz et al. 2015).
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
    "elman_relu": Cell(elman_relu, 1),
    "gru": Cell(gru, 3),
    "lstm": Cell(lstm, 4, ("h", "c")),
}


class Boundaries(NamedTuple):
    """Where the texts of packed rows begin, and which tokens are padding.

    Attributes:
      begins: (B, T) whether a text begins here, so that the state before it is zeros.
      real: (B, T) whether the token is not padding; padding does not change the state.
    """

    begins: Bool[Array, "B T"]
    real: Bool[Array, "B T"]


def boundaries(positions: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Boundaries:
    """Finds where texts begin: at position 0, and where the next segment of a row does.

    Where the first segment of a row begins at another position, it continues from the
    initial state of the row.
    """
    real = segments != 0
    latest = jax.lax.cummax(segments, axis=1)
    before = jnp.pad(latest, ((0, 0), (1, 0)))[:, :-1]
    begins = (positions == 0) | ((before != 0) & (segments != before))
    return Boundaries(real & begins, real)


def backward(bounds: Boundaries) -> Boundaries:
    """Returns the boundaries of the same rows, read from their end to their start.

    The position before the start of the next text is marked. If that is padding, the
    state is reset there, and padding does not change it.
    """
    begins = jnp.pad(bounds.begins[:, 1:], ((0, 0), (0, 1)))
    return Boundaries(*(jnp.flip(column, axis=1) for column in (begins, bounds.real)))


def recur(
    cell: str,
    inputs: Float[Array, "B T G D"],
    kernel: Float[Array, "D G D"],
    bias: Float[Array, "G D"],
    state: State,
    boundaries: Boundaries,
    *,
    precision: str | None = None,
) -> tuple[Float[Array, "B T D"], State]:
    """Runs a cell over the tokens of each row, one after the other.

    Args:
      cell: a key of CELLS.
      inputs: the preactivations from the inputs of all tokens; matrix products have
        their dtype.
      kernel, bias: from the previous state to the preactivations.
      state: before the first token, float32.

    Returns:
      The state `h` after each token in the dtype of the inputs, and the last state.
    """
    columns = tuple(jnp.swapaxes(column, 0, 1)[..., None] for column in boundaries)
    inputs = jnp.swapaxes(inputs, 0, 1)
    hidden, state = _scan(cell, precision, inputs, kernel, bias, state, columns)
    return jnp.swapaxes(hidden, 0, 1), state


def _steps(cell, precision, inputs, extra, kernel, bias, state, columns):
    """Runs the steps; also returns the state before each one, in the inputs' dtype.

    Args:
      inputs: (T, B, G, D).
      extra: added to the preactivations of the state, like `inputs`; or None.
    """
    dtype, advance = inputs.dtype, CELLS[cell].advance
    kernel = kernel.astype(dtype)

    def step(state: State, token: tuple) -> tuple[State, tuple]:
        x, more, begins, real = token
        state = {name: jnp.where(begins, 0.0, part) for name, part in state.items()}
        before = state["h"].astype(dtype)
        gates = jnp.einsum(
            "bd,dge->bge",
            before,
            kernel,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        gates = gates + bias if more is None else gates + bias + more
        new = advance(x.astype(jnp.float32), gates, state)
        state = {name: jnp.where(real, new[name], part) for name, part in state.items()}
        return state, (state["h"].astype(dtype), before)

    last, (hidden, before) = jax.lax.scan(step, state, (inputs, extra, *columns))
    return (hidden, last), before


# The gradient of the kernel is one product over all tokens: within the loop it would be
# added up in memory at every token, which takes longer than the products themselves.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(cell, precision, inputs, kernel, bias, state, columns):
    return _steps(cell, precision, inputs, None, kernel, bias, state, columns)[0]


def _forward(cell, precision, inputs, kernel, bias, state, columns):
    def run(inputs, extra, state):
        return _steps(cell, precision, inputs, extra, kernel, bias, state, columns)

    extra = jnp.zeros(inputs.shape, jnp.float32)
    found, back, before = jax.vjp(run, inputs, extra, state, has_aux=True)
    return found, (back, before)


def _backward(cell, precision, kept, gradients):
    back, before = kept
    to_inputs, to_gates, to_state = back(gradients)
    to_kernel = jnp.einsum(
        "tbd,tbge->dge",
        before,
        to_gates.astype(before.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return to_inputs, to_kernel, to_gates.sum(axis=(0, 1)), to_state, None


_scan.defvjp(_forward, _backward)
