"""Losses as sums beside their counts, so that uneven batches average correctly."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*any V"],
    targets: Int[Array, "*any"],
    weights: Float[Array, "*any"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Softmax cross-entropy in nats, weighted: (sum of losses, sum of weights).

    A place of weight 0 contributes 0 whatever its logits and target. Targets must lie
    in [0, V): the host checks that, for a gather clamps in silence.
    """
    logits = logits.astype(jnp.float32)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    weights = weights.astype(jnp.float32)
    losses = jnp.where(weights == 0, 0.0, (log_total - chosen) * weights)
    return losses.sum(), weights.sum()


def correct(
    logits: Float[Array, "*any V"],
    targets: Int[Array, "*any"],
    weights: Float[Array, "*any"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(weight of the places whose highest logit is the target, sum of weights)."""
    hits = jnp.argmax(logits, axis=-1) == targets
    weights = weights.astype(jnp.float32)
    return jnp.sum(hits * weights), weights.sum()
