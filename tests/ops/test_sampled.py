"""The sampled softmax against the whole one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import losses, sampled
from lm.ops.dense import project

V, D = 30, 4
DRAWS = 4096


def given(seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(V, D)).astype(np.float32)
    hidden = rng.normal(size=(2, 3, D)).astype(np.float32)
    targets = np.array([[0, 29, 7], [7, 7, 13]])
    weights = np.array([[1.0, 0.5, 1.0], [0.0, 1.0, 2.0]], np.float32)
    return tuple(map(jnp.asarray, (table, hidden, targets, weights)))


@functools.cache
def samples(count):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.jit(jax.vmap(lambda key: sampled.draw(key, V, count)))(keys)


@pytest.mark.parametrize(("vocab", "count"), [(30, 1), (30, 12), (30, 29), (50_000, 9)])
def test_the_rates_add_up_and_fall(vocab, count):
    found = sampled.rates(vocab, count)
    assert found.sum() == pytest.approx(count)
    assert (found > 0).all() and (found <= 1).all() and (np.diff(found) <= 0).all()
    # Those below 1 are in the proportion of the log-uniform distribution.
    free = np.flatnonzero(found < 1)
    ratio = found[free] / np.log((free + 2) / (free + 1))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@pytest.mark.parametrize("count", [5, 12])
def test_words_are_distinct_and_drawn_as_often_as_their_rates_say(count):
    ids, log_rates = map(np.asarray, samples(count))
    assert ids.shape == (DRAWS, count)
    assert all(len(set(row)) == count for row in ids.tolist())
    expected = sampled.rates(V, count)
    np.testing.assert_allclose(np.exp(log_rates), expected[ids], rtol=1e-5)
    share = np.bincount(ids.ravel(), minlength=V) / DRAWS
    deviation = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(share - expected) <= 5 * deviation + 1e-9).all()


def test_with_all_words_it_is_the_whole_softmax():
    z_loss = 0.1
    table, hidden, targets, weights = given()

    def whole(table, hidden):
        logits = project(hidden, table)
        return losses.cross_entropy(logits, targets, weights, z_loss=z_loss)[0]

    def estimate(table, hidden):
        drawn = sampled.draw(jax.random.key(1), V, V)
        return sampled.sampled_cross_entropy(
            project, table, hidden, targets, weights, drawn, z_loss=z_loss
        )[0]

    expected, found = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(table, hidden)
        for function in (whole, estimate)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected
    )


def test_the_expected_sum_and_its_gradient_are_those_of_all_words():
    """exp(loss) is the sum by the exponential of the target's logit."""
    table, hidden, targets, _ = given()
    one = hidden[:1, :1], targets[:1, 1:2], jnp.ones((1, 1))

    def estimate(table, drawn):
        return jnp.exp(sampled.sampled_cross_entropy(project, table, *one, drawn)[0])

    def whole(table):
        given = project(one[0], table), *one[1:]
        return jnp.exp(losses.cross_entropy(*given)[0])

    each = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))
    for expected, found in zip(
        jax.tree.leaves(jax.value_and_grad(whole)(table)),
        jax.tree.leaves(each(table, samples(12))),
    ):
        error = np.asarray(found).std(axis=0) / np.sqrt(DRAWS)
        gap = np.abs(np.asarray(found).mean(axis=0) - expected)
        assert (gap <= 5 * error + 1e-5 * np.abs(expected).max()).all()


def test_in_chunks_as_at_once(monkeypatch):
    table, hidden, targets, weights = given()
    drawn = sampled.draw(jax.random.key(1), V, 12)

    def loss(table, hidden):
        parts = hidden, targets, weights, drawn
        return sampled.sampled_cross_entropy(project, table, *parts)[0]

    whole = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(table, hidden)
    monkeypatch.setattr(losses, "MOST_LOGITS", 2 * 12)
    found = jax.jit(jax.value_and_grad(lambda *given: loss(*given), argnums=(0, 1)))
    found = found(table, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)
