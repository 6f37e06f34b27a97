"""Decoders and encoder-decoders: what an output depends on, what changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import trees
from lm.config import resolve as configs
from lm.models.presets import PRESETS
from lm.models.transformer import Compute, Model
from tests import tiny

LENGTH, VOCAB = 8, 40
SMALL = {
    "vocab_size": VOCAB,
    "num_layers": 2,
    "d_model": 16,
    "num_heads": 4,
    "d_ff": 24,
    "max_len": 16,
    "dropout": 0.0,
}
KINDS = {
    "gpt2": ("gpt2_small", {}),
    "llama": ("llama3_8b", {"kv_heads": 2}),
    "llama3_1": ("llama3_1_8b", {"kv_heads": 1, "query_key_norm": True}),
    "alibi": ("gpt2_small", {}),
    "window": ("llama3_8b", {"kv_heads": 2, "window": 3, "softcap": 5.0}),
    "relative": ("gpt2_small", {"buckets": 8, "max_distance": 16}),
    "transformer": ("transformer_base", {}),
    "t5": ("t5_small", {"head_dim": 6}),
    "t5_v1_1": ("t5_v1_1_small", {"head_dim": 4}),
}
BOTH = ("transformer", "t5", "t5_v1_1")
POSITION = {"alibi": "alibi", "relative": "relative"}


def make(kind, **changes):
    model = build(kind, **changes)
    return model, tiny.new(model)


def build(kind, **changes):
    preset, attention = KINDS[kind]
    fields = PRESETS[preset] | SMALL | changes
    attention = PRESETS[preset].get("attention", {}) | attention | {"dropout": 0.0}
    fields["attention"] = attention | changes.get("attention", {})
    fields["position"] = POSITION.get(kind, fields["position"])
    return configs.build(Model, fields)


def side(segments, seed, before=""):
    segments = np.asarray(segments, np.int32)
    positions = np.zeros_like(segments)
    for row, ids in enumerate(segments):
        for segment in set(ids.tolist()):
            at = np.flatnonzero(ids == segment)
            positions[row, at] = np.arange(len(at))
    tokens = np.random.default_rng(seed).integers(0, VOCAB, segments.shape)
    arrays = {"inputs": tokens, "positions": positions, "segment_ids": segments}
    return {f"{before}{k}": jnp.asarray(v, jnp.int32) for k, v in arrays.items()}


def batch(segments, source=None, seed=0):
    source = segments if source is None else source
    return side(segments, seed) | side(source, seed + 1, "source_")


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, rows):
    return model.apply({"params": params}, rows, train=False)


def dependence(kind, rows, at, name="inputs"):
    """How much the states of place `at` depend on the token at each place of a side."""
    model, params = make(kind)
    length = rows[name].shape[1]
    # Each place has a token, and so a row of the table, of its own.
    rows = rows | {
        "inputs": jnp.arange(LENGTH)[None],
        "source_inputs": jnp.arange(LENGTH, LENGTH + 8)[None],
    }

    def output(table):
        embed = params["embed"] | {"token": {"embedding": table}}
        out = hidden(model, params | {"embed": embed}, rows)
        return out[0, at] @ jnp.arange(16.0)

    table = params["embed"]["token"]["embedding"]
    gradient = np.abs(jax.jit(jax.grad(output))(table))
    return gradient[rows[name][0]].max(axis=1)[:length]


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_what_comes_after_it(kind):
    found = dependence(kind, batch([[1] * LENGTH]), at=4)
    assert (found[5:] == 0).all()
    # Two layers of a window of 3 reach four places back.
    assert (found[:5] > 0).all()


@pytest.mark.parametrize("kind", BOTH)
def test_a_decoder_sees_all_of_its_source_and_no_other(kind):
    rows = batch([[1] * 4 + [2] * 4], [[1] * 3 + [2] * 4 + [0]])
    found = dependence(kind, rows, at=1, name="source_inputs")
    assert (found[:3] > 0).all()
    assert (found[3:] == 0).all()


def test_a_prefix_is_seen_from_before():
    rows = batch([[1] * LENGTH])
    rows["prefix"] = jnp.arange(LENGTH)[None] < 3
    found = dependence("gpt2", rows, at=0)
    assert (found[:3] > 0).all()
    assert (found[3:] == 0).all()


@pytest.mark.parametrize("kind", tiny.few(KINDS, {"gpt2"}))
def test_packed_is_separate(kind):
    """Values and gradients: no document of a row sees another."""
    model, params = make(kind)
    segments = [[1, 1, 1, 2, 2, 2, 2, 0]]
    packed = batch(segments, [[1, 1, 2, 2, 2, 2, 0, 0]])
    spans = [(slice(0, 3), slice(0, 2)), (slice(3, 7), slice(2, 6))]
    parts = [
        {
            name: rows[:, source if name.startswith("source") else own]
            for name, rows in packed.items()
        }
        for own, source in spans
    ]

    def loss(params, batches, spans):
        found = zip(batches, spans)
        return sum((hidden(model, params, b)[:, s] ** 2).sum() for b, s in found)

    own = [own for own, _ in spans]
    together = hidden(model, params, packed)
    for part, span in zip(parts, own):
        alone = hidden(model, params, part)
        np.testing.assert_allclose(together[:, span], alone, atol=1e-5)

    def gradient(batches, spans):
        return jax.jit(jax.grad(lambda params: loss(params, batches, spans)))(params)

    at_once = gradient([packed], [slice(0, 7)])
    one_by_one = trees.flatten(gradient(parts, [slice(None)] * 2))
    for path, leaf in trees.flatten(at_once).items():
        limit = 2e-5 * max(1.0, float(np.abs(leaf).max()))
        np.testing.assert_allclose(leaf, one_by_one[path], atol=limit, err_msg=path)


@pytest.mark.parametrize("kind", tiny.few(KINDS, {"window", "t5"}))
def test_a_cache_gives_the_same_states(kind):
    """A prefill of unequal, left-padded prompts, then token by token."""
    model, params = make(kind)
    rows = batch([[0, 0] + [1] * 6, [1] * 8], [[1] * 5 + [0], [1] * 6])
    whole = np.asarray(hidden(model, params, rows))
    cache = model.apply({"params": params}, 2, 10, 6, method="make_cache")
    extend = jax.jit(
        lambda rows, cache: model.apply(
            {"params": params}, rows, cache, method="extend"
        )
    )
    found = []
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 8)]:
        new = {
            name: array if name.startswith("source") else array[:, start:stop]
            for name, array in rows.items()
            if start == 0 or not name.startswith("source")
        }
        states, cache = extend(new, cache)
        found.append(states)
    found = np.concatenate(found, axis=1)
    real = np.asarray(rows["segment_ids"]) > 0
    np.testing.assert_allclose(found[real], whole[real], atol=2e-5)
    assert int(cache["used"]) == 8


@pytest.mark.parametrize("kind", tiny.few(["window", "t5"], {"window"}))
@pytest.mark.parametrize(
    "compute",
    [Compute(remat="none"), Compute(remat="full"), Compute(unroll=0)],
    ids=["kept", "full", "unrolled"],
)
def test_how_it_is_computed_changes_nothing(kind, compute):
    model, params = make(kind, dropout=0.3, attention={"dropout": 0.2})
    rows = batch([[1] * LENGTH] * 2)

    def loss(params, model):
        rngs = {"dropout": jax.random.key(5, impl="rbg")}
        out = model.apply({"params": params}, rows, train=True, rngs=rngs)
        return (out * jnp.arange(16)).sum()

    both = [
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, m)
        for m in (model, dataclasses.replace(model, compute=compute))
    ]
    (first, gradient), (second, again) = both
    assert first == pytest.approx(float(second), rel=1e-5)
    for path, leaf in trees.flatten(gradient).items():
        limit = 1e-5 * max(1.0, float(np.abs(leaf).max()))
        np.testing.assert_allclose(
            leaf, trees.flatten(again)[path], atol=limit, err_msg=path
        )


def test_the_three_outputs():
    states = jax.random.normal(jax.random.key(1), (2, 3, 16))
    for output, scale in (("tied", 1.0), ("scaled", 16**-0.5), ("untied", 1.0)):
        model, params = make("gpt2", output=output, softcap=2.0)
        table = params["output" if output == "untied" else "embed"]
        table = (
            table["embedding"] if output == "untied" else table["token"]["embedding"]
        )
        found = model.apply({"params": params}, states, method="logits")
        expected = 2 * np.tanh(scale * np.asarray(states) @ np.asarray(table).T / 2)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_biases_where_they_are_asked_for():
    def biased(kind, **changes):
        names = trees.flatten(jax.eval_shape(lambda: tiny.new(build(kind, **changes))))
        return {name for name in names if name.endswith("/bias")}

    assert biased("llama") == set()
    attention = {f"layers/attention/{name}/bias" for name in ("query", "key", "value")}
    assert biased("llama", bias="qkv") == attention
    assert "layers/mlp_norm/bias" in biased("gpt2")


def test_new_weights_have_the_deviation_of_their_paper():
    wide = {"d_model": 64, "d_ff": 128, "num_heads": 4}
    _, gpt2 = make("gpt2", **wide)
    _, t5 = make("t5", attention={"head_dim": 16}, **wide)
    truncated = 0.88  # of a normal distribution cut off at two deviations

    def deviation(params, path):
        return float(jnp.std(trees.flatten(params)[path])) / truncated

    for path, expected in (
        ("layers/mlp/up/kernel", 0.02),
        ("layers/mlp/down/kernel", 0.02 / 2),  # two layers, two branches each
        ("layers/attention/output/kernel", 0.02 / 2),
        ("embed/token/embedding", 0.02),
    ):
        assert deviation(gpt2, path) == pytest.approx(expected, rel=0.1), path
    for path, expected in (
        ("embed/token/embedding", 1.0),
        ("decoder/layers/attention/query/kernel", (64 * 16) ** -0.5),
        ("decoder/layers/attention/key/kernel", 64**-0.5),
        ("encoder/layers/mlp/down/kernel", 128**-0.5),
    ):
        assert deviation(t5, path) == pytest.approx(expected, rel=0.1), path
