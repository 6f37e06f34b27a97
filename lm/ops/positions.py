"""Positions of tokens within their document."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoidal(positions: Int[Array, "B T"], dim: int) -> Float[Array, "B T D"]:
    """Sinusoidal position encoding (Vaswani et al. 2017, section 3.5), float32.

    Even places 2i hold sin(p / 10000^(2i/D)), odd places 2i + 1 the cosine.
    """
    even = jnp.arange(0, dim, 2, dtype=jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * 10_000.0 ** (-even / dim)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions.shape, -1)[..., :dim]
