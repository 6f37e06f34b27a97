"""Dropout (Srivastava et al. 2014) from few random bits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def keep_probability(rate: float, *, bits: int) -> float:
    """The probability that dropout really keeps an element: 1 - rate, in 2^-bits."""
    return 1.0 - round(rate * 2**bits) / 2**bits


def keep_mask(
    key: jax.Array, shape: tuple[int, ...], *, rate: float, bits: int
) -> Bool[Array, "..."]:
    """True with probability `keep_probability(rate, bits=bits)`, independently."""
    numbers = jax.random.bits(key, shape, jnp.dtype(f"uint{bits}"))
    return numbers >= round(rate * 2**bits)


def dropout(
    x: Float[Array, "..."],
    *,
    rate: float,
    key: jax.Array | None,
    bits: int = 16,
) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate` and scales the others; unbiased.

    Without a key (not training) or at rate 0, x is returned as it is.

    Args:
      x: any array of floats.
      rate: probability of a zero, rounded to a multiple of 2^-bits; the scale is one
        over the rounded `keep_probability`, so the expectation is exactly x.
      key: random key; an `rbg` key is several times cheaper than a threefry key.
      bits: random bits per element: 8, 16 or 32.
    """
    if key is None or rate == 0.0:
        return x
    keep = keep_mask(key, x.shape, rate=rate, bits=bits)
    scale = 1.0 / keep_probability(rate, bits=bits)
    return jnp.where(keep, x * jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype))
