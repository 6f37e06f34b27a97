"""Positions and what attention makes of them, against formulas written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import norms, positions
from lm.ops.attention import dense as attention


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def places(positions, segments, prefix=None):
    prefix = None if prefix is None else jnp.asarray(prefix, bool)
    return attention.TokenLayout(jnp.asarray(positions), jnp.asarray(segments), prefix)


# Two documents, of three and two tokens, and padding.
PACKED = [[0, 1, 2, 0, 1, 0]], [[1, 1, 1, 2, 2, 0]]


def test_the_causal_mask_of_packed_documents_written_out():
    row = places(*PACKED)
    mask = attention.visible(row, row, causal=True)[0, 0].astype(int)
    assert mask.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_a_prefix_is_seen_by_all_of_its_document():
    row = places(*PACKED, prefix=[[1, 1, 0, 0, 0, 0]])
    mask = attention.visible(row, row, causal=True)[0, 0].astype(int)
    assert mask.tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_counts_the_own_place(causal):
    row = places([[0, 1, 2, 3]], [[1] * 4])
    mask = attention.visible(row, row, causal=causal, window=2)[0, 0].astype(int)
    both = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    past = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert mask.tolist() == (past if causal else both)


def test_shared_key_heads_are_repeated_heads():
    query, bias = normal(2, 5, 6, 4), normal(1, 6, 5, 5, seed=3)
    key, value = normal(2, 5, 2, 4, seed=1), normal(2, 5, 2, 4, seed=2)
    row = places(np.tile(np.arange(5), (2, 1)), np.ones((2, 5), int))
    options = {"mask": attention.visible(row, row, causal=True), "bias": bias}
    options |= {"scale": 0.3, "softcap": 2.0}
    found = attention.attend(query, key, value, **options)
    wide = (jnp.repeat(x, 3, axis=2) for x in (key, value))
    np.testing.assert_allclose(
        found, attention.attend(query, *wide, **options), atol=1e-6
    )


def test_scale_bias_and_softcap_by_the_formula():
    query, key, value = (normal(1, 3, 2, 4, seed=i) for i in range(3))
    bias = normal(1, 2, 3, 3, seed=4)
    row = places([[0, 1, 2]], [[1, 1, 1]])
    found = attention.attend(
        query,
        key,
        value,
        mask=attention.visible(row, row),
        bias=bias,
        scale=1.7,
        softcap=0.8,
    )
    for n in range(2):
        scores = 1.7 * np.asarray(query)[0, :, n] @ np.asarray(key)[0, :, n].T
        scores = 0.8 * np.tanh(scores / 0.8) + np.asarray(bias)[0, n]
        p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = p @ np.asarray(value)[0, :, n]
        np.testing.assert_allclose(found[0, :, n], expected, atol=1e-5)


def test_rotation_is_a_complex_product():
    """Dimension i and i + H/2 are the parts of a number turned by its angle."""
    x, at = np.asarray(normal(1, 3, 2, 6)), np.array([[0, 4, 9]])
    frequencies = positions.rotary_frequencies(6, base=100.0)
    found = positions.rotate(
        jnp.asarray(x), positions.rotation(jnp.asarray(at), frequencies)
    )
    for t, place in enumerate(at[0]):
        for i in range(3):
            angle = place * 100.0 ** (-2 * i / 6)
            turned = (x[0, t, :, i] + 1j * x[0, t, :, i + 3]) * np.exp(1j * angle)
            np.testing.assert_allclose(found[0, t, :, i], turned.real, atol=1e-5)
            np.testing.assert_allclose(found[0, t, :, i + 3], turned.imag, atol=1e-5)


def test_scores_of_rotated_vectors_depend_on_the_distance_alone():
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
    frequencies = positions.rotary_frequencies(8)

    def score(t, s):
        turned = [
            positions.rotate(x, positions.rotation(jnp.array([[p]]), frequencies))
            for x, p in ((query, t), (key, s))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-3)


def test_frequencies_stretched_linearly_and_as_in_llama3():
    plain = positions.rotary_frequencies(64, base=500_000.0)
    linear = positions.rotary_frequencies(
        64, base=500_000.0, scaling="linear", factor=4.0
    )
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    found = positions.rotary_frequencies(
        64,
        base=500_000.0,
        scaling="llama3",
        factor=8.0,
        low=1.0,
        high=4.0,
        original_len=8192,
    )
    for before, after in zip(plain, found):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            expected = before
        elif wavelength > 8192:
            expected = before / 8
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * before / 8 + smooth * before
        assert after == pytest.approx(expected, rel=1e-5)
    assert len({*np.round(found / plain, 4)}) > 3  # some are blended


def test_an_unknown_scaling():
    with pytest.raises(ValueError, match="'yarn': none, linear or llama3"):
        positions.rotary_frequencies(8, scaling="yarn")


def bucket_by_hand(behind, causal, buckets=32, most=128):
    """Raffel et al. 2020: exact up to half of the buckets, then logarithmic."""
    offset = 0
    if not causal:
        buckets //= 2
        offset, behind = (buckets, -behind) if behind < 0 else (0, behind)
    behind = max(behind, 0)
    exact = buckets // 2
    if behind < exact:
        return offset + behind
    share = math.log(behind / exact) / math.log(most / exact)
    return offset + min(exact + int(share * (buckets - exact) + 1e-6), buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets_written_out(causal):
    distances = np.arange(-200, 200)
    found = positions.relative_bucket(
        jnp.asarray(distances), causal=causal, buckets=32, max_distance=128
    )
    assert found.tolist() == [bucket_by_hand(d, causal) for d in distances]
    assert found.max() == 31
    assert (found[:200] == 0).all() == causal


def test_alibi_slopes_as_published():
    assert positions.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    twelve = positions.alibi_slopes(12)
    assert twelve[:8].tolist() == [2.0**-i for i in range(1, 9)]
    np.testing.assert_allclose(twelve[8:], [2.0 ** (-i / 2) for i in (1, 3, 5, 7)])


def test_rms_norm_and_its_derivative():
    x, scale = 3 * normal(2, 3, 8) + 1, normal(8, seed=1)

    def plain(x, scale):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def ours(x, scale):
        return norms.rms_norm(x, scale, epsilon=1e-5)

    np.testing.assert_allclose(ours(x, scale), plain(x, scale), atol=1e-5)
    weights = normal(2, 3, 8, seed=4)
    both = [
        jax.grad(lambda *a: (f(*a) * weights).sum(), argnums=(0, 1))(x, scale)  # noqa: B023
        for f in (ours, plain)
    ]
    for found, expected in zip(*both):
        np.testing.assert_allclose(found, expected, atol=1e-4)
