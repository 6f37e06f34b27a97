"""lm.adapters.lora: what it computes, what is trained, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import run as runs
from lm import trees
from lm.adapters import lora
from lm.errors import ConfigError
from tests import tiny

ALL = (r".*attention/.*/kernel", r".*mlp/.*/kernel")
LORA = {"name": "lora", "kernels": ALL, "rank": 4}
DECODER = {"kind": "decoder", "norm_position": "pre", "position": "rope"}
BOTH = {"kind": "encoder_decoder", "position": "relative"}


def opened(tmp_path, adapter=LORA, **changes):
    """The corpus and the program of a tiny run with the adapter."""
    settings = tiny.config(adapter=adapter, evals={}, **changes)
    corpus, program = tiny.program(settings, tmp_path)
    return settings, corpus, program


def noisy(params):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), params
    )


def model_of(kind):
    """A tiny model, and a batch of two texts for it."""
    settings = tiny.config(**{f"model__{k}": v for k, v in kind.items()})
    built = runs.configs.load_class("model", "transformer")
    fields = {k: v for k, v in settings.model.items() if k not in ("name",)}
    model = runs.configs.build(built, fields | {"vocab_size": 16, "dropout": 0.0})
    one = jnp.ones((2, 6), jnp.int32)
    ids = jnp.arange(12).reshape(2, 6) % 16
    batch = {"inputs": ids, "positions": jnp.arange(6) * one, "segment_ids": one}
    batch["token_types"] = 0 * one
    return model, batch | {f"source_{name}": x for name, x in batch.items()}


@pytest.mark.parametrize("kind", [{}, DECODER, BOTH], ids=["enc", "dec", "both"])
def test_the_start_is_the_model_and_merging_changes_nothing(kind):
    model, batch = model_of(kind)
    adapter = lora.Adapter(kernels=ALL, rank=3, alpha=6.0)
    adapted = adapter.wrap(model, ())
    boxed = adapted.init({"params": jax.random.key(0)}, method="touch")
    start = nn.meta.unbox(boxed)["params"]
    own = trees.select(start, lambda path: not adapter.adds(path))

    def states(model, params):
        params = jax.tree.map(jnp.asarray, params)
        return model.apply({"params": params}, batch, train=False)

    assert np.array_equal(states(adapted, start), states(model, own))
    params = jax.device_get(noisy(start))
    expected = states(adapted, params)
    merged = trees.nest(adapter.merge(trees.flatten(params)))
    assert jax.tree.structure(merged) == jax.tree.structure(own)
    np.testing.assert_allclose(states(model, merged), expected, rtol=0, atol=2e-6)
    without = trees.select(params, lambda path: not adapter.adds(path))
    assert np.abs(states(model, without) - expected).max() > 0.1


def test_the_term_is_written_out_for_heads_and_layers():
    """One A and one B for each layer, over all heads of an attention kernel."""
    model, _ = model_of({})
    adapter = lora.Adapter(rank=2, scale="rank_stabilised", alpha=3.0)
    init = adapter.wrap(model, ()).init({"params": jax.random.key(0)}, method="touch")
    flat = {
        path: np.array(x)
        for path, x in trees.flatten(nn.meta.unbox(init)["params"]).items()
    }
    at = "layers/attention/query"
    a, b = flat[f"{at}/lora_a/kernel"], flat[f"{at}/lora_b/kernel"]
    assert (a.shape, b.shape) == ((2, 16, 2), (2, 2, 2, 8))
    assert not b.any() and np.abs(a).max() <= 16**-0.5 and a.std() > 0.1
    b += np.random.default_rng(0).normal(size=b.shape).astype(b.dtype)
    flat[f"{at}/lora_b/kernel"] = b
    found = adapter.merge(flat)[f"{at}/kernel"]
    change = np.stack([np.einsum("dr,rnh->dnh", a[i], b[i]) for i in range(2)])
    expected = flat[f"{at}/kernel"] + 3 / np.sqrt(2) * change
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Two(nn.Module):
    """A stranger's model with a layer of Flax."""

    def setup(self):
        self.one = nn.Dense(4)

    def touch(self):
        self.one(jnp.zeros((1, 4)))

    def __call__(self, x):
        return self.one(x)


def test_dropout_acts_on_the_input_of_the_term_alone():
    adapter = lora.Adapter(kernels=("one/kernel",), rank=4, alpha=4.0, dropout=0.25)
    model = adapter.wrap(Two(), ())
    params = model.init({"params": jax.random.key(0)}, method="touch")["params"]
    params = nn.meta.unbox(params)
    for name in (lora.A, lora.B):
        params["one"][name]["kernel"] = jnp.eye(4)
    x = jax.random.normal(jax.random.key(1), (500, 4)) + 3.0
    frozen = Two().apply(
        {"params": {"one": {k: params["one"][k] for k in ("kernel", "bias")}}}, x
    )
    rngs = {"dropout": jax.random.key(2)}
    term = np.asarray(model.apply({"params": params}, x, rngs=rngs) - frozen)
    dropped = np.isclose(term, 0, atol=1e-5)
    assert abs(dropped.mean() - 0.25) < 0.03
    np.testing.assert_allclose(
        term[~dropped], np.asarray(x)[~dropped] / 0.75, rtol=1e-4
    )
    still = model.apply({"params": params}, x) - frozen
    np.testing.assert_allclose(still, x, rtol=1e-4)


def test_only_the_adapter_and_heads_have_gradients_and_state(tmp_path):
    settings, corpus, program = opened(tmp_path)
    training = runs.open_training(
        settings, corpus, program, runs.durations(settings, corpus)
    )
    paths = trees.flatten(training.state.params)
    assert {path.split("/")[0] for path in paths} == {"layers", "heads"}
    assert all("/lora_" in path for path in paths if path.startswith("layers"))
    count = sum(x.size for x in paths.values())
    moments = sum(x.size for x in jax.tree.leaves(training.state.opt_state))
    assert 2 * count <= moments <= 2 * count + 10
    assert "frozen" not in training.state.saved()
    with jax.set_mesh(program.mesh):
        params = program.init(jax.random.key(0))
        before = jax.device_get(params)
        state, batch = training.start(params), tiny.batch(corpus, 8)
        gradients = training.gradients(state, batch)
        assert trees.flatten(gradients).keys() == paths.keys()
        for _ in range(2):
            state, _ = training.update(state, batch)
        after = jax.device_get(state.weights())
    same = {
        path: np.array_equal(x, trees.flatten(after)[path])
        for path, x in trees.flatten(before).items()
    }
    assert {path for path, kept in same.items() if not kept} == paths.keys()


@pytest.mark.parametrize(
    "fields, where",
    [
        ({"kernels": ("layers/mlp/upp/kernel",)}, r"adapter.kernels\[0\]"),
        ({"kernels": (".*mlp/up/kernel", "heads/.*/kernel")}, r"adapter.kernels\[1\]"),
        ({"kernels": ("(",)}, r"adapter.kernels\[0\]"),
        ({"kernels": ()}, "adapter.kernels"),
        ({"rank": 17}, "adapter.rank.*at most 16"),
        ({"rank": 0}, "adapter.rank"),
        ({"dropout": 1.0}, "adapter.dropout"),
        ({"rnak": 2}, "adapter.rnak.*rank"),
        ({"name": "lara"}, "adapter.name.*lora"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, fields, where):
    with pytest.raises(ConfigError, match=where):
        opened(tmp_path, LORA | fields)
