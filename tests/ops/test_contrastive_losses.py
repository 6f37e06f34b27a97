"""Contrastive losses, against loops that are written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import contrastive

RNG = np.random.default_rng(0)


def keys(*names):
    """Different numbers for different texts; names of a row are joined by blanks."""
    ids = {
        name: i for i, name in enumerate({n: 0 for row in names for n in row.split()})
    }
    return jnp.asarray([[(ids[n], 7) for n in row.split()] for row in names], jnp.int32)


def test_infonce_by_hand_on_three_pairs():
    """Similarities 1, 0 and 0.6 by angles; logs written out."""
    a = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    b = jnp.asarray([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    vectors = jnp.stack([a, b], 1)
    names = keys("a b", "c d", "e f")
    loss, right = contrastive.infonce(vectors, names, jnp.ones(3), 2.0)
    scores = [[0.6, 0.0, 1.0], [0.8, 1.0, 0.0], [1.0, 0.8, 0.6]]
    by_hand = [
        -math.log(math.exp(2 * row[i]) / sum(math.exp(2 * s) for s in row))
        for i, row in enumerate(scores)
    ]
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    assert right.tolist() == [False, True, False]
    both, _ = contrastive.infonce(vectors, names, jnp.ones(3), 2.0, symmetric=True)
    columns = [[row[i] for row in scores] for i in range(3)]
    back = [
        -math.log(math.exp(2 * col[i]) / sum(math.exp(2 * s) for s in col))
        for i, col in enumerate(columns)
    ]
    np.testing.assert_allclose(both, (np.array(by_hand) + back) / 2, rtol=1e-6)


def infonce_loop(vectors, names, weights, scale):
    """The loss of each row, by a loop over its candidates."""
    losses = []
    for i, row in enumerate(names):
        anchor, positive = row.split()[:2]
        total = 0.0
        for k in range(1, vectors.shape[1]):
            for j, other in enumerate(names):
                texts = other.split()
                own = (i, 1) == (j, k)
                same = texts[k] == positive or (k == 1 and texts[0] == anchor)
                if own or not (same or not weights[j] or not weights[i]):
                    total += math.exp(scale * float(vectors[i, 0] @ vectors[j, k]))
        own = scale * float(vectors[i, 0] @ vectors[i, 1])
        losses.append(math.log(total) - own)
    return losses


@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_texts_and_padding_are_no_negatives(symmetric):
    names = ["a p n", "b q m", "c p r", "a s p", "d t u", "e v w"]
    weights = jnp.asarray([1.0, 1, 1, 1, 1, 0])
    vectors = RNG.normal(size=(6, 3, 4)).astype(np.float32) / 2
    found, _ = contrastive.infonce(
        jnp.asarray(vectors), keys(*names), weights, 1.5, symmetric=symmetric
    )
    wanted = infonce_loop(vectors, names, weights, 1.5)
    if symmetric:
        turned = np.stack([vectors[:, 1], vectors[:, 0]], 1)
        pairs = [" ".join(row.split()[1::-1]) for row in names]
        back = infonce_loop(turned, pairs, weights, 1.5)
        wanted = (np.array(wanted) + back) / 2
    np.testing.assert_allclose(found[:5], wanted[:5], rtol=1e-5)


def test_the_gradient_is_finite_where_all_others_are_equal_texts():
    names = keys("a a", "a a", "a a")

    def loss(vectors):
        each, _ = contrastive.infonce(
            contrastive.unit(vectors), names, jnp.ones(3), 20.0
        )
        return each.sum()

    for vectors in (jnp.zeros((3, 2, 4)), jnp.ones((3, 2, 4))):
        value, gradient = jax.value_and_grad(loss)(vectors)
        assert abs(value) < 1e-6 and np.isfinite(gradient).all()


def test_cosent_is_the_sum_over_pairs_in_the_wrong_order():
    scores, labels = RNG.uniform(-1, 1, 6), np.array([0.0, 5, 2, 2, 4, 9])
    weights = np.array([1.0, 1, 1, 1, 1, 0])
    total = 1.0
    for i in range(5):
        for j in range(5):
            if labels[i] > labels[j]:
                total += math.exp(20 * (scores[j] - scores[i]))
    found = contrastive.cosent(*map(jnp.asarray, (scores, labels, weights)), 20.0)
    assert float(found) == pytest.approx(math.log(total), rel=1e-5)
