"""The network of Kim 2014 against its windows written out, and what changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm.errors import ConfigError
from lm.models.text_cnn import Model
from lm.objectives.classification import Objective
from tests.models.test_base import products

SIZES = {"vocab_size": 24, "d_embed": 6, "filters": 4, "widths": (2, 3, 5)}
HEADS = Objective(classes=3, summary="max").heads()


@functools.cache
def make(embeddings="trained"):
    model = Model(**SIZES, embeddings=embeddings, heads=HEADS)
    init = jax.jit(lambda key: model.init(key, method="touch")["params"])
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: x + rng.normal(0.0, 0.3, x.shape).astype(np.float32),
        meta.unbox(init(jax.random.key(0))),
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, inputs, segments):
    def head(model):
        batch = {"inputs": inputs, "segment_ids": segments}
        hidden = model(batch, train=False)
        return model.head("classify", hidden, segments, train=False)

    return model.apply({"params": params}, method=head)


def written_out(params, text, tables):
    """The logits of a text: filter by filter, window by window, over time."""
    x = np.concatenate([np.asarray(table)[text] for table in tables], axis=-1)
    found = []
    for width in SIZES["widths"]:
        conv = jax.tree.map(np.asarray, params[f"conv_{width}"])
        before, after = width - 1 - width // 2, width // 2
        zeros = [np.zeros((n, x.shape[1])) for n in (before, after)]
        wide = np.concatenate([zeros[0], x, zeros[1]])
        values = [
            np.einsum("ki,kif->f", wide[t : t + width], conv["kernel"]) + conv["bias"]
            for t in range(len(text))
        ]
        found.append(np.maximum(values, 0.0).max(axis=0))
    dense = params["heads"]["classify"]
    return np.concatenate(found) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize("embeddings", ["trained", "static", "both"])
def test_the_largest_value_of_each_filter_decides(embeddings):
    """Of texts longer and shorter than the filters, down to one token, and padded."""
    model, params = make(embeddings)
    names = {"trained": ["embed"], "static": ["static"], "both": ["embed", "static"]}
    tables = [params[name]["embedding"] for name in names[embeddings]]
    lengths = (9, 4, 1)
    rng = np.random.default_rng(1)
    inputs = rng.integers(0, 24, (3, 9))
    segments = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int32)
    found = logits_of(model, params, inputs, segments)
    expected = [
        written_out(params, row[:length], tables)
        for row, length in zip(inputs, lengths)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    wide = [np.pad(x, ((0, 0), (2, 6))) for x in (inputs, segments)]
    wide[0][wide[1] == 0] = 7
    more = logits_of(model, params, *wide)
    np.testing.assert_allclose(more, found, atol=1e-5)


def test_a_static_table_has_no_gradient():
    model, params = make("both")
    inputs, segments = np.arange(6)[None], np.ones((1, 6), np.int32)

    def loss(params):
        return logits_of(model, params, inputs, segments).sum()

    gradient = jax.grad(loss)(params)
    assert np.abs(gradient["embed"]["embedding"]).max() > 0
    assert not gradient["static"]["embedding"].any()
    assert set(make("static")[1]) == {"static", "conv_2", "conv_3", "conv_5", "heads"}


def test_dropout_is_of_what_the_classifier_reads():
    model, params = make()
    hidden = jnp.ones((1, 2, 12))
    apply = functools.partial(
        model.apply, {"params": params}, "classify", hidden, jnp.ones((1, 2), int)
    )
    draws = {
        float(
            apply(train=True, method="head", rngs={"dropout": jax.random.key(n)})[0, 0]
        )
        for n in range(4)
    }
    assert len(draws) > 1
    assert apply(train=False, method="head").shape == (1, 3)


def test_the_flops_are_those_of_the_matrix_products():
    model, params = make("both")
    batch = {"inputs": jnp.ones((2, 7), int), "segment_ids": jnp.ones((2, 7), int)}
    run = functools.partial(model.apply, {"params": params}, train=False)
    counted = products(jax.make_jaxpr(run)(batch).jaxpr)
    assert model.flops(batch) == 6.0 * counted


@pytest.mark.parametrize("widths", [(), (3, 3)])
def test_widths_that_make_no_sense_are_refused(widths):
    with pytest.raises(ConfigError, match=r"model\.widths.*each once"):
        Model(**SIZES | {"widths": widths})
