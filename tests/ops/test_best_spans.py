"""The best spans of tokens against the list of all of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import spans


@pytest.mark.parametrize("most", [1, 3, 50])
def test_all_spans_in_order(most):
    rng = np.random.default_rng(most)
    starts, ends = rng.normal(size=(2, 3, 7)).astype(np.float32)
    begin, end = rng.random((2, 3, 7)) < 0.7
    found = spans.best(
        *map(jnp.asarray, (starts, ends, begin, end)), most=most, count=100
    )
    assert found.scores.shape == (3, 7 * min(most, 7))
    for row in range(3):
        every = [
            (float(starts[row, i] + ends[row, j]), i, j)
            for i in range(7)
            for j in range(i, min(i + most, 7))
            if begin[row, i] and end[row, j]
        ]
        every.sort(reverse=True)
        own = zip(found.scores[row], found.starts[row], found.ends[row])
        kept = [(s, i, j) for s, i, j in own if s > spans.NEVER / 2]
        assert [(int(i), int(j)) for _, i, j in kept] == [p[1:] for p in every]
        np.testing.assert_allclose([k[0] for k in kept], [p[0] for p in every])


def test_nothing_may_begin():
    none = jnp.zeros((1, 4), bool)
    found = spans.best(jnp.ones((1, 4)), jnp.ones((1, 4)), none, none, most=2, count=3)
    assert (found.scores <= spans.NEVER).all() and np.isfinite(found.scores).all()
