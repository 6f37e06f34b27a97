"""Draws: what each setting leaves to draw from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import sampling

LOGITS = np.random.default_rng(0).normal(0, 3, (5, 40)).astype(np.float32)
LOGITS[1, 3:20] = -np.inf
LOGITS[2] = -np.abs(LOGITS[2])
ORDER = np.argsort(-LOGITS, axis=1)


ROWS = jnp.asarray(LOGITS)


def kept(array):
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in np.asarray(array)]


@pytest.mark.parametrize("k", [1, 2, 7, 23, 40, 99])
def test_top_k(k):
    found = kept(sampling.keep_top_k(ROWS, jnp.int32(k)))
    possible = kept(LOGITS)
    for row, order in enumerate(ORDER):
        assert found[row] == set(order[:k].tolist()) & possible[row]
    assert kept(sampling.keep_top_k(ROWS, jnp.int32(0))) == possible


def test_ties_stay_together():
    logits = jnp.array([[1.0, 0.0, 1.0, 0.0, -0.0, 1.0]])
    assert kept(sampling.keep_top_k(logits, jnp.int32(2))) == [{0, 2, 5}]


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999, 1.0])
def test_top_p(p):
    found = kept(sampling.keep_top_p(ROWS, jnp.float32(p)))
    for row, order in enumerate(ORDER):
        weights = np.exp(LOGITS[row] - LOGITS[row].max())
        mass = itertools.accumulate((weights / weights.sum())[order])
        needed = 1 + sum(m < p - 1e-6 for m in mass)
        possible = set(np.flatnonzero(LOGITS[row] > -np.inf).tolist())
        if p == 1.0:  # What is too small for a sum of floats may be lost.
            assert len(possible - found[row]) < 4
        else:
            assert found[row] == set(order[:needed].tolist())


def test_min_p():
    found = kept(sampling.keep_min_p(ROWS, jnp.float32(0.1)))
    for row, logits in enumerate(LOGITS):
        weights = np.exp(logits - logits.max())
        assert found[row] == set(np.flatnonzero(weights >= 0.1).tolist())


def test_penalty():
    logits, said = jnp.array([[2.0, -2.0, 2.0]]), jnp.array([[True, True, False]])
    found = sampling.penalise(logits, said, jnp.float32(4.0))
    np.testing.assert_array_equal(found, [[0.5, -8.0, 2.0]])


OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def draw(logits, count, **changes):
    keys = jax.random.split(jax.random.key(0), count)
    rows = jnp.broadcast_to(logits, (count, len(logits)))
    options = {name: jnp.asarray(value) for name, value in (OFF | changes).items()}
    return np.asarray(sampling.choose(rows, keys, **options))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies(temperature):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2, 0.0]))
    said = draw(logits, 20000, temperature=temperature)
    expected = np.array([0.5, 0.3, 0.2, 0.0]) ** (1 / temperature)
    found = np.bincount(said, minlength=4) / 20000
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)


def test_settings_apply_in_turn():
    """Of four words top_k leaves two, of whose mass the first has 0.62."""
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    assert set(draw(logits, 500)) == {0, 1, 2, 3}
    assert set(draw(logits, 500, top_k=2)) == {0, 1}
    assert set(draw(logits, 500, top_p=0.6)) == {0, 1}
    assert set(draw(logits, 500, top_k=2, top_p=0.6)) == {0}
    assert set(draw(logits, 500, min_p=0.2)) == {0, 1, 2}
    assert set(draw(logits, 500, temperature=0.0)) == {0}
