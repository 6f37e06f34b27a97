"""Normalisation of activations."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_norm(
    x: Float[Array, "*any D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None = None,
    *,
    epsilon: float,
) -> Float[Array, "*any D"]:
    """Normalises by mean and variance (Ba et al. 2016), in float32; result as x."""
    return _norm(x, scale, jnp.zeros_like(scale) if bias is None else bias, epsilon, 1)


def rms_norm(
    x: Float[Array, "*any D"], scale: Float[Array, "D"], *, epsilon: float
) -> Float[Array, "*any D"]:
    """Divides by the root mean square (Zhang and Sennrich 2019); dtypes as above."""
    return _norm(x, scale, jnp.zeros_like(scale), epsilon, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(x, scale, bias, epsilon, centre):
    """Computes (x - centre * mean) / deviation * scale + bias; `centre` is 0 or 1."""
    return _forward(x, scale, bias, epsilon, centre)[0]


def _forward(x, scale, bias, epsilon, centre):
    centred = x.astype(jnp.float32)
    if centre:
        centred -= jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    normalised = centred * inverse
    y = (normalised * scale + bias).astype(x.dtype)
    return y, (normalised.astype(x.dtype), inverse, scale)


def _backward(epsilon, centre, kept, gradient):
    normalised, inverse, scale = kept
    dtype, lead = gradient.dtype, tuple(range(gradient.ndim - 1))
    gradient, normalised = (a.astype(jnp.float32) for a in (gradient, normalised))
    inner = gradient * scale
    tilt = jnp.mean(inner * normalised, axis=-1, keepdims=True)
    if centre:
        inner -= jnp.mean(inner, axis=-1, keepdims=True)
    dx = inverse * (inner - normalised * tilt)
    dscale = jnp.sum(gradient * normalised, axis=lead)
    return dx.astype(dtype), dscale, jnp.sum(gradient, axis=lead)


_norm.defvjp(_forward, _backward)
