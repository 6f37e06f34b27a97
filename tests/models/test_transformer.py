"""Published sizes; and of encoders, what an output depends on, what changes nothing."""

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
from lm.objectives import mlm
from lm.ops import losses
from lm.training import step
from tests import tiny

HEADS = MASKED, NEXT = mlm.Objective(next="nsp").heads()
TINY = {
    "vocab_size": 40,
    "num_layers": 3,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 32,
    "max_len": 16,
    "dropout": 0.0,
    "attention": {"dropout": 0.0},
}


def make(**changes):
    model = configs.build(Model, TINY | {"heads": HEADS} | changes)
    return model, tiny.new(model)


def batch(segments, seed=0, **given):
    """Random tokens for rows of the given segment ids, with their positions."""
    segments = jnp.asarray(segments, jnp.int32)
    draw = np.random.default_rng(seed)
    positions = np.zeros(segments.shape, np.int32)
    for row, ids in enumerate(np.asarray(segments)):
        for segment in set(ids.tolist()):
            places = np.flatnonzero(ids == segment)
            positions[row, places] = np.arange(len(places))
    tokens = draw.integers(0, TINY["vocab_size"], segments.shape, dtype=np.int32)
    return {
        "inputs": jnp.asarray(tokens),
        "positions": jnp.asarray(positions),
        "segment_ids": segments,
        "token_types": jnp.zeros_like(segments),
    } | given


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, rows):
    return model.apply({"params": params}, rows, train=False)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# With the pooler, as Turc et al. 2019 and Devlin et al. 2019 count; BERT-base and
# RoBERTa with their pre-training heads too.
POOLED = (NEXT,)
SIZES = [
    ("bert_tiny", POOLED, 4_385_920 + 128 * 2 + 2),
    ("bert_mini", POOLED, 11_170_560 + 256 * 2 + 2),
    ("bert_small", POOLED, 28_763_648 + 512 * 2 + 2),
    ("bert_medium", POOLED, 41_373_184 + 512 * 2 + 2),
    ("bert_base", POOLED, 109_482_240 + 768 * 2 + 2),
    ("bert_large", POOLED, 335_141_888 + 1024 * 2 + 2),
    ("bert_base", HEADS, 110_106_428),
    ("roberta_base", POOLED, 124_645_632 + 768 * 2 + 2),
    ("roberta_base", (MASKED,), 124_697_433),
    ("gpt2_small", (), 124_439_808),
    ("gpt2_medium", (), 354_823_168),
    ("gpt2_large", (), 774_030_080),
    ("gpt2_xl", (), 1_557_611_200),
    # A shape of ours: 64 of 256 dimensions are keys', as many values'.
    ("llama_tiny", (), 2 * 32000 * 256 + 4 * (3 * 256 * 688 + 3 * 256**2 + 512) + 256),
    ("llama2_7b", (), 6_738_415_616),
    ("llama2_13b", (), 13_015_864_320),
    ("llama2_70b", (), 68_976_648_192),
    ("llama3_8b", (), 8_030_261_248),
    ("llama3_70b", (), 70_553_706_496),
    ("llama3_1_8b", (), 8_030_261_248),
    ("llama3_2_1b", (), 1_235_814_400),
    ("t5_small", (), 60_506_624),
    ("t5_base", (), 222_903_552),
    ("t5_large", (), 737_668_096),
    ("t5_v1_1_small", (), 76_961_152),
    ("t5_v1_1_base", (), 247_577_856),
    ("t5_v1_1_large", (), 783_150_080),
]
# Vaswani et al. 2017, table 3, in millions, with a vocabulary of about 37,000.
MILLIONS = {"transformer_base": 65, "transformer_big": 213}


@pytest.mark.parametrize("preset, heads, parameters", SIZES)
def test_published_sizes(preset, heads, parameters):
    model = configs.build(Model, PRESETS[preset], heads=heads)
    shapes = jax.eval_shape(step.make(model, None).init, jax.random.key(0))
    assert count(shapes) == parameters


@pytest.mark.parametrize("preset", MILLIONS)
def test_sizes_published_in_millions(preset):
    model = configs.build(Model, PRESETS[preset] | {"vocab_size": 37_000})
    shapes = jax.eval_shape(step.make(model, None).init, jax.random.key(0))
    assert count(shapes) / 1e6 == pytest.approx(MILLIONS[preset], rel=0.035)


def test_every_preset_is_in_a_table_of_sizes():
    assert {preset for preset, _, _ in SIZES} | set(MILLIONS) == set(PRESETS)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_an_output_depends_on_both_sides(norm_position, position):
    model, params = make(norm_position=norm_position, position=position)
    rows = batch([[1] * 8])

    def output_at(embedding):
        changed = params | {"embed": params["embed"] | {"token": embedding}}
        return hidden(model, changed, rows)[0, 3] @ jnp.arange(16.0)

    rows["inputs"] = jnp.arange(8)[None]  # so that each place has a row of its own
    gradient = jax.grad(output_at)(params["embed"]["token"])["embedding"]
    touched = np.abs(np.asarray(gradient)).max(axis=1) > 1e-8
    assert touched[:8].all()
    assert not touched[8:].any()


def test_padding_changes_nothing():
    model, params = make()
    short = batch([[1] * 6])
    long = {name: jnp.pad(rows, ((0, 0), (0, 5))) for name, rows in short.items()}
    long["inputs"] = long["inputs"].at[:, 6:].set(9)
    a, b = hidden(model, params, short), hidden(model, params, long)
    np.testing.assert_allclose(b[:, :6], a, atol=1e-6)
    assert np.isfinite(b).all()


@pytest.mark.parametrize("position", tiny.few(["learned", "sinusoidal"], {"learned"}))
def test_packed_is_separate(position):
    """Values and gradients: no document of a row sees another."""
    model, params = make(position=position)
    packed = batch([[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0]])
    spans = [slice(0, 5), slice(5, 8), slice(8, 10)]
    parts = [
        {name: rows[:, span] for name, rows in packed.items()}
        | {"segment_ids": jnp.ones((1, span.stop - span.start), jnp.int32)}
        for span in spans
    ]
    together = hidden(model, params, packed)
    for part, span in zip(parts, spans):
        np.testing.assert_allclose(
            together[:, span], hidden(model, params, part), atol=1e-6
        )

    def loss(params, batches, spans):
        found = zip(batches, spans)
        return sum((hidden(model, params, b)[:, s] ** 2).sum() for b, s in found)

    def gradient(batches, spans):
        return jax.jit(jax.grad(lambda params: loss(params, batches, spans)))(params)

    all_at_once = gradient([packed], [slice(0, 10)])
    one_by_one = gradient(parts, [slice(None)] * 3)
    for path, leaf in trees.flatten(all_at_once).items():
        other = trees.flatten(one_by_one)[path]
        np.testing.assert_allclose(leaf, other, atol=3e-5, err_msg=path)


@pytest.mark.parametrize(
    "compute",
    [
        pytest.param(Compute(remat="none"), marks=pytest.mark.slow),
        pytest.param(Compute(remat="full"), marks=pytest.mark.slow),
        pytest.param(Compute(unroll=0), marks=pytest.mark.slow),
        pytest.param(Compute(unroll=0, remat="full"), marks=pytest.mark.slow),
    ],
    ids=["kept", "full", "unrolled", "unrolled-full"],
)
def test_how_it_is_computed_changes_nothing(compute):
    """The same parameters, dropout masks, values and gradients."""
    model, params = make(dropout=0.3, attention={"dropout": 0.3})
    other = dataclasses.replace(model, compute=compute)
    rows = batch([[1] * 10] * 2)

    def loss(params, model):
        key = jax.random.key(5, impl="rbg")
        rngs = {"dropout": key}
        out = model.apply({"params": params}, rows, train=True, rngs=rngs)
        return (out * jnp.arange(16)).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (first, gradient), (second, again) = both(params, model), both(params, other)
    assert first == pytest.approx(float(second), rel=1e-6)
    for path, leaf in trees.flatten(gradient).items():
        limit = 1e-5 * max(1.0, float(np.abs(leaf).max()))
        np.testing.assert_allclose(
            leaf, trees.flatten(again)[path], atol=limit, err_msg=path
        )
    still = dataclasses.replace(model, dropout=0.0)
    assert jax.jit(loss, static_argnums=1)(params, still) != first


def test_bfloat16_stays_close_and_gives_float32_logits():
    model, params = make()
    half = dataclasses.replace(model, compute=Compute(dtype="bfloat16"))
    rows = batch([[1] * 8])
    a, b = hidden(model, params, rows), hidden(half, params, rows)
    assert b.dtype == jnp.bfloat16
    assert 0 < np.abs(a - b.astype(jnp.float32)).max() < 0.2
    logits = half.apply({"params": params}, b, method="logits")
    assert logits.dtype == jnp.float32


def test_the_vocabulary_head_is_tied_to_the_embedding():
    model, params = make()
    rows = batch([[1] * 8])
    states = hidden(model, params, rows)

    def logits(params):
        return model.apply({"params": params}, states, method="logits")

    moved = jax.tree.map(lambda x: x, params)
    moved["embed"]["token"]["embedding"] = params["embed"]["token"]["embedding"] * 2
    bias = params["heads"]["mlm"]["bias"]
    np.testing.assert_allclose(
        logits(moved) - bias, 2 * (logits(params) - bias), rtol=1e-5
    )


def test_the_encoder_of_another_implementation(test_data):
    """Two layers of BERT as Hugging Face computes them, from a published fixture."""
    place = test_data("ref_model_fixtures") / "axlearn.common.encoder_test.npz"
    case = "test_against_hf_encoder/"
    file = np.load(place)
    given = {k.removeprefix(case): file[k] for k in file.files if k.startswith(case)}
    names = {
        "attention/query": "self_attention/attention/i_proj/q_proj",
        "attention/key": "self_attention/attention/i_proj/k_proj",
        "attention/value": "self_attention/attention/i_proj/v_proj",
        "attention/output": "self_attention/attention/o_proj",
        "attention_norm": "self_attention/norm",
        "mlp/up": "feed_forward/linear1",
        "mlp/down": "feed_forward/linear2",
        "mlp_norm": "feed_forward/norm",
    }

    def stacked(path, kind):
        theirs = f"{names[path]}/{'weight' if kind == 'kernel' else kind}"
        root = "params/encoder/transformer/layer"
        layers = [given[f"{root}{n}/{theirs}"] for n in range(2)]
        if path == "attention/output" and kind == "kernel":  # theirs is (D, N, H)
            layers = [np.transpose(layer, (1, 2, 0)) for layer in layers]
        return np.stack(layers)

    embed = "params/encoder/emb"
    flat = {
        "embed/token/embedding": given[f"{embed}/token_emb/weight"],
        "embed/position/embedding": given[f"{embed}/pos_emb/weight"][0],
        "embed/type/embedding": given[f"{embed}/type_emb/weight"],
        "embed/norm/scale": given[f"{embed}/norm/scale"],
        "embed/norm/bias": given[f"{embed}/norm/bias"],
    }
    for path in names:
        kinds = ("scale", "bias") if path.endswith("norm") else ("kernel", "bias")
        flat |= {f"layers/{path}/{kind}": stacked(path, kind) for kind in kinds}
    model, params = make(
        vocab_size=24,
        num_layers=2,
        d_model=12,
        num_heads=4,
        d_ff=48,
        max_len=11,
        token_types=1,
        norm_epsilon=1e-5,
        heads=(),
    )
    params = trees.unflatten(params, {k: jnp.asarray(v) for k, v in flat.items()})
    rows = batch(np.ones((3, 11)), inputs=jnp.asarray(given["inputs/input_ids"]))
    found = hidden(model, params, rows)
    np.testing.assert_allclose(found, given["outputs/last_hidden_state"], atol=2e-6)


def test_cross_entropy_against_numpy():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(3, 4, 7)).astype(np.float32)
    targets = draw.integers(0, 7, (3, 4)).astype(np.int32)
    weights = np.array([[1, 1, 0, 0], [1, 0.5, 0, 1], [0, 0, 0, 0]], np.float32)
    logits[0, 2] = np.nan  # a place without weight counts for nothing, whatever it has
    total, number = losses.cross_entropy(*map(jnp.asarray, (logits, targets, weights)))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, targets[..., None], -1)[..., 0]
    expected = -(np.log(chosen) * weights)[weights > 0].sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(number) == weights.sum()
    hits, _ = losses.correct(*map(jnp.asarray, (logits, targets, weights)))
    assert float(hits) == pytest.approx(
        ((np.argmax(logits, -1) == targets) * weights).sum()
    )
