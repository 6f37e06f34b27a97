"""What a student learns of its teacher, beside numpy and beside the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import distillation, losses
from lm.ops.distillation import Soft

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def probabilities(logits, temperature):
    powers = np.exp(np.asarray(logits, np.float64) / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_those_of_the_formula(temperature):
    own, theirs = drawn(4, 5), drawn(4, 5)
    p, q = (probabilities(each, temperature) for each in (theirs, own))
    expected = temperature**2 * (p * np.log(p / q)).sum(-1)
    found = distillation.softmax(own, theirs, temperature)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    np.testing.assert_allclose(
        distillation.softmax(own, own, temperature), 0, atol=1e-6
    )
    # T^2 keeps the gradient's size: at a high temperature it is (own - theirs) / C of
    # logits without their mean (Hinton et al. 2015, equation 4).
    wide = jax.grad(lambda x: distillation.softmax(x, theirs, 500.0).sum())(own)
    centred = [each - each.mean(-1, keepdims=True) for each in (own, theirs)]
    np.testing.assert_allclose(wide, (centred[0] - centred[1]) / 5, atol=2e-3)


def test_an_excluded_class_costs_nothing():
    theirs = jnp.asarray([[0.0, -jnp.inf, 1.0]])
    found = distillation.softmax(jnp.asarray([[0.0, 3.0, 1.0]]), theirs, 1.0)
    p, q = probabilities([0.0, 1.0], 1.0), probabilities([0.0, 3.0, 1.0], 1.0)
    expected = p[0] * np.log(p[0] / q[0]) + p[1] * np.log(p[1] / q[2])
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_yes_and_no_of_each_class():
    own, theirs = drawn(3, 4), drawn(3, 4)
    p, q = (1 / (1 + np.exp(-np.asarray(x, np.float64) / 2)) for x in (theirs, own))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = distillation.sigmoid(own, theirs, 2.0)
    np.testing.assert_allclose(found, 4 * each.mean(-1), rtol=2e-5)


@pytest.mark.parametrize("chunked", [False, True])
def test_logits_by_chunks_are_all_logits_and_the_teacher_has_no_gradient(
    chunked, monkeypatch
):
    if chunked:
        monkeypatch.setattr(losses, "MOST_LOGITS", 2 * 2 * 7 * 2)  # two of five
    hidden, theirs, weights = drawn(2, 5, 3), drawn(2, 5, 4), jnp.ones((2, 5))
    weights = weights.at[0, 3:].set(0)
    table, other = drawn(7, 3), drawn(7, 4)

    def loss(hidden, table, theirs, other):
        own = Soft(hidden, weights, logits=lambda x: x @ table.T)
        wanted = Soft(theirs, weights, logits=lambda x: x @ other.T)
        return distillation.soft_loss(own, wanted, 2.0)

    given = hidden, table, theirs, other
    (total, count), grads = (
        loss(*given),
        jax.grad(lambda *x: loss(*x)[0], argnums=(0, 1, 2, 3))(*given),
    )
    each = distillation.softmax(hidden @ table.T, theirs @ other.T, 2.0)
    np.testing.assert_allclose(total, (each * weights).sum(), rtol=1e-5)
    assert count == 8

    def whole(hidden, table):
        found = distillation.softmax(hidden @ table.T, theirs @ other.T, 2.0)
        return (found * weights).sum()

    for mine, plain in zip(grads[:2], jax.grad(whole, argnums=(0, 1))(hidden, table)):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)
    assert not np.any(grads[2]) and not np.any(grads[3])


def test_states_of_other_widths_by_a_projection():
    own, theirs, kernel = drawn(2, 3, 4), drawn(2, 3, 6), drawn(4, 6)
    mapped = own @ kernel
    found = distillation.state_loss(own, theirs, kernel, "mse")
    np.testing.assert_allclose(found, np.mean((mapped - theirs) ** 2, -1), rtol=1e-4)
    lengths = np.linalg.norm(mapped, axis=-1) * np.linalg.norm(theirs, axis=-1)
    found = distillation.state_loss(own, theirs, kernel, "cosine")
    expected = 1 - (mapped * theirs).sum(-1) / lengths
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def loss(own, theirs, kernel):
        return distillation.state_loss(own, theirs, kernel, "mse").sum()

    grads = jax.grad(loss, argnums=(0, 1, 2))(own, theirs, kernel)
    assert np.any(grads[0]) and not np.any(grads[1]) and np.any(grads[2])
    zero = jnp.zeros_like(own)
    grad = jax.grad(lambda x: distillation.state_loss(x, own, None, "cosine").sum())(
        zero
    )
    assert np.isfinite(grad).all()
