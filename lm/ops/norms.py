"""Normalisation of activations."""

import functools

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
    return _layer_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    normalised = centred * inverse
    y = (normalised * scale + bias).astype(x.dtype)
    return y, (normalised.astype(x.dtype), inverse, scale)


def _backward(epsilon, kept, gradient):
    normalised, inverse, scale = kept
    dtype, lead = gradient.dtype, tuple(range(gradient.ndim - 1))
    gradient, normalised = (a.astype(jnp.float32) for a in (gradient, normalised))
    inner = gradient * scale
    shift = jnp.mean(inner, axis=-1, keepdims=True)
    tilt = jnp.mean(inner * normalised, axis=-1, keepdims=True)
    dx = inverse * (inner - shift - normalised * tilt)
    dscale = jnp.sum(gradient * normalised, axis=lead)
    return dx.astype(dtype), dscale, jnp.sum(gradient, axis=lead)


_layer_norm.defvjp(_forward, _backward)
