"""Attention by XLA, on all devices and without limits: `attend` of `dense.py`."""

import jax

from lm.ops.attention import dense
from lm.ops.attention.dense import Request, TokenLayout, visible

LIMITS: dict = {}
PLATFORM = None


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    layouts: tuple[TokenLayout, TokenLayout],
    request: Request,
) -> jax.Array:
    """Computes attention with the scores of whole rows; shapes as in `dense.attend`."""
    mask = visible(*layouts, causal=request.causal, window=request.window)
    return dense.attend(
        query,
        key,
        value,
        mask=mask,
        bias=request.bias,
        scale=request.scale,
        softcap=request.softcap,
        dropout_rate=request.dropout_rate,
        dropout_key=request.dropout_key,
        precision=request.precision,
    )
