"""Positions of tokens within their document."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sinusoidal(positions: Int[Array, "B T"], dim: int) -> Float[Array, "B T D"]:
    """Computes sinusoidal position encodings (Vaswani et al. 2017, 3.5), float32.

    Dimension 2i is sin(p / 10000^(2i/D)), dimension 2i + 1 its cosine.
    """
    even = jnp.arange(0, dim, 2, dtype=jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * 10_000.0 ** (-even / dim)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions.shape, -1)[..., :dim]


def rotary_frequencies(
    dim: int,
    *,
    base: float = 10_000.0,
    scaling: str = "none",
    factor: float = 1.0,
    low: float = 1.0,
    high: float = 4.0,
    original_len: int = 8192,
) -> Float[np.ndarray, "half"]:
    """Returns radians per position of each pair of dimensions (Su et al. 2021, 3.2).

    Args:
      dim: H, even.
      scaling: "none"; "linear", all frequencies divided by `factor` (Chen et al. 2023,
        position interpolation); "llama3": those with fewer than `low` turns within
        `original_len` positions are divided, those with more than `high` are unchanged,
        those between are interpolated (Llama 3, 2024, section 3.2, with the formula of
        its released model).
    """
    frequencies = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling == "linear":
        frequencies = frequencies / factor
    elif scaling == "llama3":
        turns = original_len * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (kept + (1.0 - kept) / factor)
    elif scaling != "none":
        raise ValueError(f"unknown scaling {scaling!r}: none, linear or llama3")
    return frequencies.astype(np.float32)


def rotation(
    positions: Int[Array, "B T"], frequencies: Float[np.ndarray, "half"]
) -> Float[Array, "2 B T 1 half"]:
    """Returns the cosine and the sine of each angle, float32."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(
    x: Float[Array, "B T N H"], rotary: Float[Array, "2 B T 1 half"]
) -> Float[Array, "B T N H"]:
    """Applies rotary position embedding (Su et al. 2021, section 3.4.2), in x's dtype.

    Dimension i is paired with i + H/2, as in the released models of Llama.
    """
    cos, sin = rotary
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    parts = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def relative_bucket(
    behind: Int[Array, "*any"], *, causal: bool, buckets: int, max_distance: int
) -> Int[Array, "*any"]:
    """Returns the bucket of a relative position (Raffel et al. 2020, section 2.1).

    Each bucket of the first half has one distance. Those of the second half are
    logarithmic up to `max_distance`; all larger distances are in the last one.

    Args:
      behind: query position minus key position.
      causal: puts keys after the query into bucket 0; otherwise the upper half of the
        buckets is theirs.
    """
    offset = jnp.int32(0)
    if not causal:
        buckets //= 2
        offset = jnp.where(behind < 0, buckets, 0)
        behind = jnp.abs(behind)
    behind = jnp.maximum(behind, 0)
    exact = buckets // 2
    # The ratio of logarithms is often a whole number. It is computed in float32 in this
    # order, since another order puts some distances into the next bucket.
    ratio = jnp.log(jnp.maximum(behind, 1).astype(jnp.float32) / exact)
    far = exact + (ratio / math.log(max_distance / exact) * (buckets - exact)).astype(
        jnp.int32
    )
    far = jnp.minimum(far, buckets - 1)
    return offset + jnp.where(behind < exact, behind, far)


def alibi_slopes(heads: int) -> Float[np.ndarray, "N"]:
    """Returns the slope of each head's linear bias (Press et al. 2022, section 3).

    For a power of two it is a geometric sequence from 2^(-8/N). For other N it is the
    sequence of the power below, and every second number of that of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))

    def geometric(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    rest = geometric(2 * power)[::2][: heads - power]
    return np.concatenate([geometric(power), rest]).astype(np.float32)
