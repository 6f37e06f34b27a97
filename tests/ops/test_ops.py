"""The mathematics against formulas written out, and the derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lm.ops import activations, dense, dropout, norms, positions
from lm.ops.attention import dense as attention


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_mask_of_packed_documents_written_out():
    segments = jnp.array([[1, 1, 2, 0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    places = attention.TokenLayout(jnp.zeros_like(segments), segments)
    mask = attention.visible(places, places)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].astype(int).tolist() == expected


def test_attention_against_loops():
    query, key, value = (np.asarray(normal(2, 4, 3, 5, seed=i)) for i in range(3))
    segments = jnp.array([[1, 1, 2, 2], [1, 1, 1, 0]])
    places = attention.TokenLayout(jnp.zeros_like(segments), segments)
    mask = attention.visible(places, places)
    found = attention.attend(*map(jnp.asarray, (query, key, value)), mask=mask)
    for b in range(2):
        for n in range(3):
            for t in range(4):
                seen = [s for s in range(4) if mask[b, 0, t, s]]
                if not seen:
                    continue
                scores = np.array([query[b, t, n] @ key[b, s, n] for s in seen])
                p = np.exp(scores / 5**0.5)
                expected = (p / p.sum()) @ np.stack([value[b, s, n] for s in seen])
                np.testing.assert_allclose(found[b, t, n], expected, atol=1e-5)
    assert np.isfinite(found).all()


def test_sinusoidal_positions_by_the_formula():
    found = positions.sinusoidal(jnp.array([[0, 3, 7]]), 6)
    for t, p in enumerate((0, 3, 7)):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            assert found[0, t, 2 * i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert found[0, t, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-6)


def test_layer_norm_and_its_derivative():
    x, scale, bias = 3 * normal(2, 3, 8) + 1, normal(8, seed=1), normal(8, seed=2)
    found = norms.layer_norm(x, scale, bias, epsilon=1e-5)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected * scale + bias, atol=1e-5)

    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias

    by_hand = jax.vjp(lambda *a: norms.layer_norm(*a, epsilon=1e-5), x, scale, bias)[1]
    automatic = jax.vjp(plain, x, scale, bias)[1]
    for a, b in zip(by_hand(normal(2, 3, 8)), automatic(normal(2, 3, 8))):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_layer_norm_keeps_its_input_type_with_float32_statistics():
    x = (1000 + normal(4, 64)).astype(jnp.bfloat16)
    found = norms.layer_norm(x, jnp.ones(64), jnp.zeros(64), epsilon=1e-6)
    assert found.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.02)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activations_and_their_derivatives(name):
    x = jnp.linspace(-4, 4, 41)
    wide = np.asarray(x, np.float64)
    expected = {
        "gelu": wide * 0.5 * (1 + scipy.special.erf(wide / 2**0.5)),
        "gelu_tanh": wide
        * 0.5
        * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3))),
        "relu": np.maximum(wide, 0),
        "silu": wide / (1 + np.exp(-wide)),
    }[name]
    np.testing.assert_allclose(activations.activate(x, name), expected, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda v: activations.activate(v, name)))(x)
    middle = np.abs(wide) > 0.05  # relu has no slope at 0
    numeric = np.gradient(expected, wide, edge_order=2)
    np.testing.assert_allclose(slope[middle], numeric[middle], atol=0.03)


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="'swish': gelu, gelu_tanh, relu or silu"):
        activations.activate(jnp.ones(2), "swish")


def test_gated_units_name_the_function_of_their_gate():
    x = normal(5)
    for unit, gate in (("swiglu", "silu"), ("geglu", "gelu"), ("reglu", "relu")):
        found = activations.activate(x, unit)
        np.testing.assert_array_equal(found, activations.activate(x, gate))


@pytest.mark.parametrize("contract", [1, 2])
def test_dense_contracts_the_last_axes(contract):
    x, bias = normal(2, 3, 4, 5), normal(6, seed=1)
    kernel = normal(*(4, 5)[2 - contract :], 6, seed=2)
    letters = "nh"[2 - contract :]
    lead = "btnh"[: 4 - contract]
    expected = np.einsum(f"{lead}{letters},{letters}d->{lead}d", x, kernel) + bias
    found = dense.dense(x, kernel, bias, contract=contract)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_dropout_statistics(impl):
    rate, x = 0.3, jnp.ones((64, 50, 40))
    key = jax.random.key(1, impl=impl)
    found = np.asarray(dropout.dropout(x, rate=rate, key=key))
    kept = found != 0
    assert set(np.unique(found).tolist()) == {0.0, float(np.float32(1 / 0.7))}
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(kept.mean() - 0.7) < 4 * deviation
    for axis in range(3):  # no row, column or plane is favoured
        others = tuple(a for a in range(3) if a != axis)
        each = x.size / x.shape[axis]
        limit = 5 * (rate * (1 - rate) / each) ** 0.5
        assert np.abs(kept.mean(axis=others) - 0.7).max() < limit
    for axis in range(3):  # neighbours are independent
        a = np.moveaxis(kept, axis, 0)
        together = (a[1:] & a[:-1]).mean()
        assert abs(together - 0.49) < 0.006


def test_dropout_follows_its_key_and_has_the_mask_in_its_derivative():
    x = normal(8, 16)
    keys = jax.random.split(jax.random.key(0), 2)
    first = dropout.dropout(x, rate=0.5, key=keys[0])
    np.testing.assert_array_equal(first, dropout.dropout(x, rate=0.5, key=keys[0]))
    assert (first != dropout.dropout(x, rate=0.5, key=keys[1])).any()
    slope = jax.grad(lambda v: dropout.dropout(v, rate=0.5, key=keys[0]).sum())(x)
    np.testing.assert_array_equal(slope, jnp.where(first != 0, 2.0, 0.0))
    np.testing.assert_array_equal(dropout.dropout(x, rate=0.5, key=None), x)
    np.testing.assert_array_equal(dropout.dropout(x, rate=0.0, key=keys[0]), x)


def test_rows_of_one_dropout_mask_differ():
    mask = np.asarray(dropout.keep_mask(jax.random.key(0), (200, 32), rate=0.5))
    assert len({row.tobytes() for row in mask}) == 200
