"""Matrix products of activations with parameters."""

import math

import jax
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
    """Multiplies the last `contract` axes of x by a kernel, adds a bias; in x's dtype.

    Args:
      x: activations (..., I), or (..., N, H) with contract=2.
      kernel: (I, O...) or (N, H, O...); O may be several axes.
      bias: (O...), or None.
    """
    y = _product(x, kernel.astype(x.dtype), contract, precision)
    return y if bias is None else y + bias.astype(x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, contract: int, precision: str | None
) -> jax.Array:
    lead, axes = x.ndim - contract, range(contract)
    over = tuple(lead + axis for axis in axes), tuple(axes)
    return lax.dot_general(x, kernel, (over, ((), ())), precision=precision)


def _forward_and_kept(
    x: jax.Array, kernel: jax.Array, contract: int, precision: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Do not call _product: a rematerialisation policy must see the matrix product.
    return _forward(x, kernel, contract, precision), (x, kernel)


def _backward(
    contract: int,
    precision: str | None,
    kept: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    lead, out = x.ndim - contract, kernel.ndim - contract
    # XLA on CPU transposes the left operand of the kernel's gradient in memory, slowly
    # where an activation is fused into the copy; so the narrower operand is the left.
    narrow = math.prod(kernel.shape[:contract]) <= math.prod(kernel.shape[contract:])
    left, right = (x, g) if narrow else (g, x)
    rows = (tuple(range(lead)),) * 2
    to_kernel = lax.dot_general(left, right, (rows, ((), ())), precision=precision)
    if not narrow:
        to_kernel = jnp.moveaxis(to_kernel, range(out), range(contract, kernel.ndim))
    over = tuple(range(lead, g.ndim)), tuple(range(contract, kernel.ndim))
    return lax.dot_general(g, kernel, (over, ((), ())), precision=precision), to_kernel


_product = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))
_product.defvjp(_forward_and_kept, _backward)


def project(
    hidden: Float[Array, "*any D"],
    table: Float[Array, "V D"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    precision: str | None = None,
) -> Float[Array, "*any V"]:
    """Computes logits by an embedding table, one token a row; float32.

    Args:
      scale: multiplies the hidden states first.
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
