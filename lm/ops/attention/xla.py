"""Attention by XLA, for all devices and everything: `attend` of `dense.py` itself."""

import jax

from lm.ops.attention import dense
from lm.ops.attention.dense import Places, Request, visible

LIMITS: dict = {}
PLATFORM = None


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: tuple[Places, Places],
    request: Request,
) -> jax.Array:
    """Computes attention with the scores of whole rows; shapes as `dense.attend`."""
    mask = visible(*places, causal=request.causal, window=request.window)
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
