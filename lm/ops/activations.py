"""Activation functions by name."""

import jax
from jaxtyping import Array, Float


def activate(x: Float[Array, "*any"], name: str) -> Float[Array, "*any"]:
    """"gelu" (exact, by erf), "gelu_tanh" (its approximation; both Hendrycks and
    Gimpel 2016) or "relu"."""
    if name == "gelu":
        return jax.nn.gelu(x, approximate=False)
    if name == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    if name == "relu":
        return jax.nn.relu(x)
    raise ValueError(f"unknown activation {name!r}: gelu, gelu_tanh or relu")
