"""Matrix products of activations with parameters."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def dense(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    *,
    contract: int = 1,
    precision: str | None = None,
) -> Float[Array, "..."]:
    """x times kernel over the last `contract` axes of x, plus bias; in x's dtype.

    Args:
      x: activations (..., I), or (..., N, H) with contract=2.
      kernel: (I, O...) or (N, H, O...); O may be several axes.
      bias: (O...), or None.
    """
    lead = x.ndim - contract
    contracted = tuple(range(lead, x.ndim)), tuple(range(contract))
    y = lax.dot_general(
        x, kernel.astype(x.dtype), (contracted, ((), ())), precision=precision
    )
    return y if bias is None else y + bias.astype(x.dtype)


def project(
    hidden: Float[Array, "*any D"],
    table: Float[Array, "V D"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    precision: str | None = None,
) -> Float[Array, "*any V"]:
    """Logits of the words whose embeddings are the rows of a table, float32.

    Args:
      scale: of the hidden states beforehand.
      softcap: logits become softcap tanh(logits / softcap) (Gemma 2, 2024, section 2).
    """
    logits = jnp.einsum(
        "...d,vd->...v",
        hidden if scale == 1.0 else hidden * scale,
        table.astype(hidden.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
