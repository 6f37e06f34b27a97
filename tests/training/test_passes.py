"""What each row adds to a metric: it is what the metric of that row alone is."""

import jax.numpy as jnp
import numpy as np

from lm.objectives import tagging
from lm.ops import chain, losses
from lm.training import passes
from lm.updates.base import Rows

RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.random((3, 4)) * [[1], [1], [0]], jnp.float32)


def shares(metrics, batch):
    (_, found), carried = passes.by_row(metrics, Rows(batch, {"c": jnp.ones(3)}))
    assert carried["c"].tolist() == [2, 2, 2]
    return {k: np.stack(part, axis=1) for k, part in found.items()}


def test_shares_are_the_metrics_of_each_row():
    values = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    values = values.at[2].set(-jnp.inf)  # of a row without weight
    batch = {"x": values, "weights": WEIGHTS, "other_weights": WEIGHTS[:, 0]}

    def metrics(rows):
        x, weights, other = rows.batch.values()
        hits = losses.weighted(x.argmax(axis=1) == 1, other)
        found = {"loss": losses.weighted(x, weights), "hits": hits}
        return found, {"c": rows.carried["c"] + 1}

    found = shares(metrics, batch)
    for row in range(3):
        alone = {name: array[row : row + 1] for name, array in batch.items()}
        for name, pair in metrics(Rows(alone, {"c": jnp.ones(1)}))[0].items():
            np.testing.assert_allclose(found[name][row], pair, rtol=1e-6)
    assert not found["loss"][2].any()


def test_what_a_batch_has_as_a_whole_has_no_shares():
    def metrics(rows):
        most = jnp.max(jnp.where(rows.batch["weights"] > 0, rows.batch["x"], -9.0))
        return {"most": (most, jnp.ones(()))}, {"c": rows.carried["c"] + 1}

    assert not shares(metrics, {"x": WEIGHTS, "weights": WEIGHTS})["most"].any()


def test_the_loss_of_a_chain_of_tags_is_that_of_its_rows():
    emissions = jnp.asarray(RNG.normal(size=(3, 4, 2)), jnp.float32)
    scores = chain.Chain(emissions, jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32))
    weights = np.asarray([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    labels = RNG.integers(2, size=(3, 4))
    batch = {"labels": labels, "label_weights": weights, "word_segments": weights > 0}
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    objective = tagging.Objective(labels=("A", "B"), decoder="crf")

    def metrics(rows):
        pair = objective._loss(scores, rows.batch)
        return {"loss": pair}, {"c": rows.carried["c"] + 1}

    found = shares(metrics, batch)["loss"]
    nats = chain.nats(scores, batch["labels"], batch["word_segments"])
    np.testing.assert_allclose(found[:, 0], nats, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], weights.sum(1))
