"""Attention by cuDNN's fused kernel, for NVIDIA GPUs (Dao et al. 2022)."""

import jax

from lm.ops.attention.dense import Request, TokenLayout, padded, scaled, visible

LIMITS = {
    "bias": (("none",), "none"),
    "dropout": ((0.0,), "model.attention.dropout=0"),
    "dtype": (("bfloat16",), "compute.dtype=bfloat16"),
    "head_dim": ({"from": 8, "to": 256, "step": 8}, "a multiple of 8, up to 256"),
    "softcap": ((None,), "none"),
}
PLATFORM = "gpu"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    layouts: tuple[TokenLayout, TokenLayout],
    request: Request,
) -> jax.Array:
    """Computes attention without keeping the scores of a whole row in memory."""
    length = query.shape[1]
    query = scaled(query, request)
    # With a mask, cuDNN's backward pass needs even lengths.
    query, key, value, layouts = padded(query, key, value, layouts, 2)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=visible(*layouts, causal=request.causal, window=request.window),
        # The mask contains this already, but so the kernel leaves out half of the work.
        is_causal=request.causal and layouts[1].prefix is None,
        scale=1.0,
        implementation="cudnn",
    )[:, :length]
