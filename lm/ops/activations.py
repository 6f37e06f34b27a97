"""Activation functions by name."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

# The gated units (Shazeer 2020, "GLU Variants Improve Transformer"), and the function
# that each applies to its gate.
GATES = {
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "reglu": "relu",
    "swiglu": "silu",
}


def activate(x: Float[Array, "*any"], name: str) -> Float[Array, "*any"]:
    """Applies the activation function of a name, elementwise.

    "gelu" is exact, by erf; "gelu_tanh" is its approximation (both Hendrycks and Gimpel
    2016); "relu"; "silu". The name of a gated unit means the function of its gate.
    """
    name = GATES.get(name, name)
    if name == "gelu":
        return gelu(x)
    if name == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    if name == "relu":
        return jax.nn.relu(x)
    if name == "silu":
        return jax.nn.silu(x)
    raise ValueError(f"unknown activation {name!r}: gelu, gelu_tanh, relu or silu")


@jax.custom_jvp
def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Multiplies x by its normal distribution function (Hendrycks and Gimpel 2016)."""
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    # With the derivative as one factor, the backward pass keeps one array, not three.
    (x,), (tangent,) = primals, tangents
    cdf = _normal_cdf(x)
    return x * cdf, tangent * (cdf + x * norm.pdf(x))


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))
