"""Scaled dot-product attention over documents packed into rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm.ops.dropout import dropout


def segment_mask(
    query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]
) -> Bool[Array, "B 1 T S"]:
    """True where a query may see a key: same document, and neither is padding.

    Segments count from 1 within a row; 0 is padding.
    """
    query, key = query_segments[:, None, :, None], key_segments[:, None, None, :]
    return (query == key) & (query != 0)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    mask: Bool[Array, "B 1 T S"],
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    precision: str | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(Q K^T / sqrt(H)) V, with dropout on the probabilities.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1. The softmax is in
    float32. A query that may see nothing (padding) gets a finite, meaningless result.
    """
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum(
        "btnh,bsnh->bnts",
        query,
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probabilities = dropout(probabilities, rate=dropout_rate, key=dropout_key)
    return jnp.einsum("bnts,bsnh->btnh", probabilities, value, precision=precision)
