"""One-hot vectors times a table are the rows of the table."""

import jax.numpy as jnp
import numpy as np

from lm.models import one_hot, word_vectors


def test_a_one_hot_vector_selects_its_row():
    ids = jnp.asarray([3, 0, 3])
    table = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    found = one_hot.Model(vocab_size=5).apply({}, ids, method="vectors")
    params = {"counts": np.zeros(5), "embed": {"embedding": jnp.asarray(table)}}
    model = word_vectors.Model(vocab_size=5, d_model=2)
    rows = model.apply({"params": params}, ids, method="vectors")
    np.testing.assert_array_equal(found @ table, rows)
    np.testing.assert_array_equal(rows, table[[3, 0, 3]])


def test_counts_of_words_add_up():
    model = one_hot.Model(vocab_size=4)
    batch = {
        "contexts": np.asarray([[[9, 1, 2, 1, 9]]]),
        "pair_weights": np.asarray([[[1.0, 1.0, 1.0]]]),
    }
    once = model.statistics({}, batch)
    assert once["counts"].tolist() == [0, 2, 1, 0]
    params, _, said = model.improve({}, {}, model.merge(once, once))
    assert params["counts"].tolist() == [0, 4, 2, 0] and said == {"words": 2.0}
