"""Scaled dot-product attention over documents packed into rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lm.ops.dropout import dropout


class TokenLayout(NamedTuple):
    """The layout of tokens in packed rows, from which attention masks are made.

    Attributes:
      positions: (B, T) position within the document, from 0.
      segments: (B, T) number of the document within the row, from 1; 0 is padding.
      prefix: (B, T) whether all tokens of the document see this one, as in a prefix
        language model (Raffel et al. 2020, section 3.2.1); None: they see none so.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    prefix: Bool[Array, "B T"] | None = None


class Request(NamedTuple):
    """The options of a call of attention, beside queries, keys and values.

    Attributes:
      layouts: of the queries and of the keys.
      causal, window: as for `visible`.
      bias, scale, softcap, dropout_rate, dropout_key, precision: as for `attend`.
      spec: how the mesh lays out key and value; None where there is no mesh.
      interpret: runs the kernel of a TPU on any device, slowly, for tests.
    """

    layouts: tuple[TokenLayout, TokenLayout]
    causal: bool = False
    window: int | None = None
    bias: Float[Array, "#B N T S"] | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout_rate: float = 0.0
    dropout_key: jax.Array | None = None
    precision: str | None = None
    spec: PartitionSpec | None = None
    interpret: bool = False


def visible(
    query: TokenLayout,
    key: TokenLayout,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Bool[Array, "B 1 T S"]:
    """Returns True where a query sees a key: same document, and neither is padding.

    Args:
      causal: hides keys after the query, except those of the prefix.
      window: how many keys a query sees, its own included. Keys after it, where not
        hidden, are seen up to the same distance.
    """
    same = query.segments[:, :, None] == key.segments[:, None, :]
    mask = same & (query.segments != 0)[:, :, None]
    behind = query.positions[:, :, None] - key.positions[:, None, :]
    if causal:
        past = behind >= 0
        mask &= past if key.prefix is None else past | key.prefix[:, None, :]
    if window is not None:
        mask &= jnp.abs(behind) < window
    return mask[:, None]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "B 1 T S"],
    bias: Float[Array, "#B N T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    precision: str | None = None,
) -> Float[Array, "B T N H"]:
    """Computes softmax(scale Q K^T + bias) V, with dropout on the probabilities.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1. With fewer key
    heads than query heads, each is shared by N / K neighbouring query heads (Ainslie et
    al. 2023). The softmax is in float32. The result of a query that sees no key is
    finite and meaningless.

    Args:
      scale: None is 1 / sqrt(H).
      softcap: scores become softcap tanh(scores / softcap) (Gemma 2, 2024, section 2).
    """
    batch, length, heads, dim = query.shape
    kv_heads, keys = key.shape[2], key.shape[1]
    query = query * (dim**-0.5 if scale is None else scale)
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum(
        "btkgh,bskh->bkgts",
        query,
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(batch, heads, length, keys)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores += bias
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probabilities = dropout(probabilities, rate=dropout_rate, key=dropout_key)
    probabilities = probabilities.reshape(batch, kv_heads, -1, length, keys)
    out = jnp.einsum("bkgts,bskh->btkgh", probabilities, value, precision=precision)
    return out.reshape(batch, length, heads, dim)


def scaled(query: Float[Array, "B T N H"], request: Request) -> Float[Array, "B T N H"]:
    """Multiplies the queries by the scale, for kernels that do not scale scores."""
    scale = request.scale
    return query * (query.shape[-1] ** -0.5 if scale is None else scale)


def padded(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    layouts: tuple[TokenLayout, TokenLayout],
    multiple: int,
) -> tuple[jax.Array, jax.Array, jax.Array, tuple[TokenLayout, TokenLayout]]:
    """Pads axis 1 of each array at its end, to a multiple of tokens."""

    def pad(x: jax.Array) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, -x.shape[1] % multiple)
        return jnp.pad(x, widths)

    return jax.tree.map(pad, (query, key, value, layouts))
