"""The gradient of a scan of a cell, against differences of its value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lm.ops.recurrence import CELLS, boundaries, recur
from tests import tiny


@pytest.mark.parametrize("cell", tiny.few(["gru", "lstm"], {"gru"}))
def test_the_gradient_is_that_of_the_value(cell):
    """With texts that begin within a row, and padding; of all that it depends on."""
    rng, gates = np.random.default_rng(0), CELLS[cell].gates

    def draw(*shape):
        return jnp.asarray(rng.normal(0.0, 0.7, shape), jnp.float32)

    positions = jnp.array([[3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 1, 1]])
    bounds = boundaries(positions, segments)
    state = {part: draw(2, 3) for part in CELLS[cell].parts}
    given = draw(2, 6, gates, 3), draw(3, gates, 3), draw(gates, 3), state

    @jax.jit
    def value(*given):
        hidden, last = recur(cell, *given, bounds)
        return jnp.sin(hidden).sum() + sum((x**2).sum() for x in last.values())

    check_grads(value, given, order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
