"""Minima of convex functions: the conditions of optimality, exact zeros, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import quasi_newton

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 20)) * np.geomspace(0.3, 3, 20)
TRUE = np.where(np.arange(20) % 3 == 0, RNG.normal(size=20) * 2, 0)
Y = X @ TRUE + RNG.normal(size=60)
C2 = 0.2


def loss(weights):
    flat = jnp.concatenate([weights["a"].reshape(-1), weights["b"]])
    rest = jnp.asarray(X, jnp.float32) @ flat - jnp.asarray(Y, jnp.float32)
    return 0.5 * jnp.sum(rest**2) + C2 * jnp.sum(flat**2)


def flat(weights):
    both = np.concatenate([np.asarray(weights["a"]).reshape(-1), weights["b"]])
    return both.astype(np.float64)


def slope(w):
    """The gradient of the loss in float64."""
    return X.T @ (X @ w - Y) + 2 * C2 * w


ZEROS = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(5)}


@pytest.mark.parametrize(("c1", "least", "most"), [(20.0, 3, 19), (2e3, 20, 20)])
def test_the_minimum_with_an_l1_penalty(c1, least, most):
    """Where w = 0 the gradient is at most c1, elsewhere it is -c1 sign(w)."""
    solve = jax.jit(
        lambda w: quasi_newton.owlqn(loss, c1, w, None, steps=200, history=6)
    )
    found = solve(ZEROS)
    w = flat(found.weights)
    zero, gradient = w == 0, slope(w)
    assert least <= zero.sum() <= most
    assert (np.abs(gradient[zero]) <= c1).all()
    np.testing.assert_allclose(gradient[~zero], -c1 * np.sign(w[~zero]), atol=0.05)
    value = 0.5 * np.sum((X @ w - Y) ** 2) + C2 * np.sum(w**2) + c1 * np.abs(w).sum()
    assert float(found.value) == pytest.approx(value, rel=1e-5)
    assert float(found.gradient) < 0.05 and int(found.steps) < 200


def test_the_memory_goes_on():
    """Twice four steps are eight; without the memory they are others."""

    def solve(weights, memory, steps):
        return quasi_newton.owlqn(loss, 5.0, weights, memory, steps=steps, history=4)

    whole = solve(ZEROS, None, 8)
    half = solve(ZEROS, None, 4)
    both = solve(half.weights, half.memory, 4)
    np.testing.assert_allclose(flat(both.weights), flat(whole.weights), atol=1e-5)
    forgot = solve(half.weights, None, 4)
    assert np.abs(flat(forgot.weights) - flat(whole.weights)).max() > 1e-3


def test_the_minimum_without_penalty():
    found = quasi_newton.lbfgs(loss, ZEROS, None, steps=100, history=6)
    wanted = np.linalg.solve(X.T @ X + 2 * C2 * np.eye(20), X.T @ Y)
    np.testing.assert_allclose(flat(found.weights), wanted, atol=3e-3)
