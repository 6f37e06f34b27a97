"""Windows of neighbouring tokens, which convolutions over text multiply by a kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def windows(
    x: Float[Array, "B S D"],
    segments: Int[Array, "B S"],
    *,
    width: int,
    ahead: int = 0,
) -> Float[Array, "B T K D"]:
    """Gathers the window of each token: `width` = K positions next to each other.

    A position of another segment than the token's own counts as zeros, so that a text
    sees nothing of the others in its row.

    Args:
      x: with the positions that the windows of the first and the last token need, so
        that S = T + K - 1: K - 1 - ahead before the first token, `ahead` after the last
        (see `pad`).
      segments: of the same positions.
      ahead: how many positions of a window come after its token; 0 is causal.
    """
    length = x.shape[1] - width + 1
    spans = [slice(offset, offset + length) for offset in range(width)]
    own = segments[:, spans[width - 1 - ahead]]
    parts = [
        jnp.where((segments[:, span] == own)[..., None], x[:, span], 0)
        for span in spans
    ]
    return jnp.stack(parts, axis=2)


def pad(x: Array, *, width: int, ahead: int = 0) -> Array:
    """Pads (B, T, ...) with zeros to (B, T + K - 1, ...), as `windows` needs it."""
    rest = [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, [(0, 0), (width - 1 - ahead, ahead), *rest])
