"""Attention by the splash kernel of Pallas, for TPUs (Dao et al. 2022)."""

import jax
import jax.numpy as jnp

from lm.ops.attention.dense import Request, TokenLayout, padded, scaled

LIMITS = {
    "bias": (("none",), "none"),
    "dropout": ((0.0,), "model.attention.dropout=0"),
    "prefix": ((False,), "none"),
    "precision": ((None, "default"), "compute.precision=default"),
}
PLATFORM = "tpu"
# Sizes of the kernel's tiles; the largest one that divides a length is used.
BLOCKS = (512, 256, 128)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    layouts: tuple[TokenLayout, TokenLayout],
    request: Request,
) -> jax.Array:
    """Computes attention without keeping the scores of a whole row in memory."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query, length = scaled(query, request), query.shape[1]
    query, key, value, layouts = padded(query, key, value, layouts, BLOCKS[-1])
    size = query.shape[1], key.shape[1]
    rows, columns = (next(b for b in BLOCKS if n % b == 0) for n in size)
    reach = None if request.window is None else request.window - 1
    mask: splash.Mask
    mask = splash.LocalMask(size, (reach, 0 if request.causal else reach), offset=0)
    if reach is None and not request.causal:
        mask = splash.FullMask(size)
    attention = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=request.softcap,
        interpret=request.interpret,
    )
    # Padding, segment 0, sees padding, but its results and gradients are never used.
    segments = splash.SegmentIds(*(side.segments for side in layouts))
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jax.vmap(attention)(query, key, value, segments)
    return jnp.swapaxes(out, 1, 2)[:, :length]
