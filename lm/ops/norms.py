"""Normalisation of activations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_norm(
    x: Float[Array, "*any D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    *,
    epsilon: float,
) -> Float[Array, "*any D"]:
    """Layer normalisation (Ba et al. 2016); statistics in float32, result as x."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
    normalised = (x32 - mean) * jax.lax.rsqrt(variance + epsilon)
    return (normalised * scale + bias).astype(x.dtype)
