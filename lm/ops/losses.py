"""Losses as sums beside their counts, so that uneven batches average correctly."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# The most logits in memory at once (256 MiB); with more, the loss is taken in chunks.
MOST_LOGITS = 1 << 26

Logits = Callable[[jax.Array, jax.Array], jax.Array]


def token_losses(
    logits: Float[Array, "*any V"],
    targets: Int[Array, "*any"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, "*any"]:
    """Computes the softmax cross-entropy of each target in nats, float32.

    Args:
      targets: in [0, V); the host checks them, since a gather clamps silently.
      label_smoothing: share of each target spread over all V tokens (Szegedy et al.
        2016, section 7).
      z_loss: factor of the squared logarithm of the softmax's sum, added to the loss
        (Chowdhery et al. 2022, section 5).
    """
    logits = logits.astype(jnp.float32)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        mean = jnp.mean(logits, axis=-1)
        chosen = (1.0 - label_smoothing) * chosen + label_smoothing * mean
    losses = log_total - chosen
    return losses + z_loss * jnp.square(log_total) if z_loss else losses


def cross_entropy(
    logits: Float[Array, "*any V"],
    targets: Int[Array, "*any"],
    weights: Float[Array, "*any"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (sum of the weighted token losses, sum of weights).

    A target of weight 0 contributes 0, also where its logits are not finite.
    """
    losses = token_losses(
        logits, targets, label_smoothing=label_smoothing, z_loss=z_loss
    )
    return weighted(losses, weights)


def binary_cross_entropy(
    logits: Float[Array, "*any"], targets: Float[Array, "*any"]
) -> Float[Array, "*any"]:
    """Computes the sigmoid cross-entropy of each target in nats, float32.

    Args:
      targets: in [0, 1].
    """
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - targets * logits


def focal(losses: Float[Array, "*any"], gamma: float) -> Float[Array, "*any"]:
    """Multiplies the loss -log p of each target by (1 - p)^gamma (Lin et al. 2017).

    So targets that are predicted well count little.

    Args:
      gamma: 0 changes nothing; of others those from 1 on have finite gradients.
    """
    if not gamma:
        return losses
    return jnp.maximum(-jnp.expm1(-losses), 0.0) ** gamma * losses


def weighted(
    values: Shaped[Array, "*any"], weights: Float[Array, "*any"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum of weighted values, without those of weight 0, and of weights."""
    weights = weights.astype(jnp.float32)
    # Masked before the product, whose derivative by a weight is the value: perhaps inf.
    return (jnp.where(weights == 0, 0.0, values) * weights).sum(), weights.sum()


def correct(
    logits: Float[Array, "*any V"],
    targets: Int[Array, "*any"],
    weights: Float[Array, "*any"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (weight of the targets with the highest logit, sum of weights)."""
    hits = jnp.argmax(logits, axis=-1) == targets
    weights = weights.astype(jnp.float32)
    return jnp.sum(hits * weights), weights.sum()


def chunk_of(rows: int, length: int, vocab: int) -> int:
    """Returns how many positions a chunk has: all of a row, or a power of two."""
    if rows * length * vocab <= MOST_LOGITS:
        return length
    most = max(1, MOST_LOGITS // (rows * vocab))
    return min(length, 1 << (most.bit_length() - 1))


def chunked_cross_entropy(
    logits: Logits,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes `cross_entropy(logits(hidden, table), ...)` by chunks of positions.

    Only the logits of one chunk are in memory, in the backward pass too: where the
    gradient is needed, the forward pass takes it chunk by chunk and keeps it as
    (B, T, D) and (V, D) instead of (B, T, V). Nothing is computed twice.

    Args:
      chunk: positions of a row that are taken at a time, of `chunk_of`.
    """
    total = functools.partial(
        _chunk_loss, logits, label_smoothing=label_smoothing, z_loss=z_loss
    )
    if chunk >= hidden.shape[1]:
        return total(table, hidden, targets, weights), weights.sum()
    parts = tuple(in_chunks(array, chunk) for array in (hidden, targets, weights))
    return _scanned(total, table, *parts), weights.astype(jnp.float32).sum()


def judged(
    logits: Logits,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Returns the loss of each target in nats, and whether its logit is the largest.

    Logits are computed by chunks of positions where they are many, and in a backward
    pass once more.
    """

    def judge(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = part
        found = logits(hidden, table)
        right = jnp.argmax(found, axis=-1) == targets
        return token_losses(found, targets), right

    rows, length, _ = hidden.shape
    chunk = chunk_of(rows, length, len(table))
    if chunk >= length:
        return judge((hidden, targets))
    parts = in_chunks(hidden, chunk), in_chunks(targets, chunk)
    nats, right = (
        jnp.moveaxis(part, 0, 1).reshape(rows, -1)[:, :length]
        for part in jax.lax.map(jax.checkpoint(judge), parts)
    )
    return nats, right


def _chunk_loss(logits, table, hidden, targets, weights, **options):
    return cross_entropy(logits(hidden, table), targets, weights, **options)[0]


def in_chunks(array: jax.Array, chunk: int) -> jax.Array:
    """Reshapes (B, T, ...) to (T / chunk, B, chunk, ...), padded by zeros."""
    rows, length = array.shape[:2]
    count = -(-length // chunk)
    array = jnp.pad(
        array, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (array.ndim - 2)
    )
    return jnp.moveaxis(array.reshape(rows, count, chunk, *array.shape[2:]), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scanned(total, table, hidden, targets, weights):
    def one(sum_, part):
        return sum_ + total(table, *part), None

    return jax.lax.scan(one, jnp.zeros(()), (hidden, targets, weights))[0]


def _scanned_forward(total, table, hidden, targets, weights):
    gradient = jax.value_and_grad(total, argnums=(0, 1))

    def one(carry, part):
        sum_, d_table = carry
        value, (more, d_hidden) = gradient(table, *part)
        return (sum_ + value, d_table + more), d_hidden

    start = jnp.zeros(()), jnp.zeros_like(table)
    (sum_, d_table), d_hidden = jax.lax.scan(one, start, (hidden, targets, weights))
    return sum_, (d_table, d_hidden)


def _scanned_backward(total, kept, gradient):
    d_table, d_hidden = kept
    return d_table * gradient, d_hidden * gradient.astype(d_hidden.dtype), None, None


_scanned.defvjp(_scanned_forward, _scanned_backward)
