"""Matrix products of activations with parameters."""

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
