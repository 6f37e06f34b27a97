"""Attention by cuDNN's fused kernel, for NVIDIA GPUs (Dao et al. 2022)."""

import jax

from lm.ops.attention.dense import Places, Request, padded, scaled, visible

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
    places: tuple[Places, Places],
    request: Request,
) -> jax.Array:
    """Computes attention without holding the scores of a whole row."""
    length = query.shape[1]
    query = scaled(query, request)
    # With a mask cuDNN's backward pass wants even lengths.
    query, key, value, places = padded(query, key, value, places, 2)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=visible(*places, causal=request.causal, window=request.window),
        # Says nothing that the mask does not, but half of the work can be left out.
        is_causal=request.causal and places[1].prefix is None,
        scale=1.0,
        implementation="cudnn",
    )[:, :length]
