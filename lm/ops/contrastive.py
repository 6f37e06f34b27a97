"""Losses of vectors that are compared with those of the other rows of a batch.

Each returns the loss of every row, (B,); rows of weight 0 are padding, which
no other row is compared with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def unit(vectors: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
    """Divides vectors by their lengths; a vector of zeros stays one."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    # Without the bound the gradient at zero would be NaN.
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def distance(
    one: Float[Array, "*any D"], other: Float[Array, "*any D"]
) -> Float[Array, "*any"]:
    """Computes the euclidean distance of vectors."""
    squares = jnp.sum(jnp.square(one - other), axis=-1)
    # Without the bound the gradient of equal vectors would be NaN.
    return jnp.sqrt(jnp.maximum(squares, 1e-12))


def parts(array: Array, count: int) -> Array:
    """Cuts (B, ...) into (count, B / count, ...); no row changes its device."""
    rows = len(array) // count
    return jnp.swapaxes(array.reshape(rows, count, *array.shape[1:]), 0, 1)


def whole(array: Array) -> Array:
    """Joins what `parts` has cut."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def same_texts(keys: Int[Array, "B K 2"]) -> Bool[Array, "B N"]:
    """Tells which of the N = B (K - 1) candidates are no negatives of a row.

    They are texts that equal its positive, and the positives of rows with the same
    anchor. Its own positive is among them. The candidates are in the order of
    `candidates_of`.
    """
    anchors, positives = keys[:, 0], keys[:, 1]
    candidates = candidates_of(keys)
    same = jnp.all(positives[:, None] == candidates[None], axis=-1)
    twins = jnp.all(anchors[:, None] == anchors[None], axis=-1)
    return same.at[:, : len(keys)].set(same[:, : len(keys)] | twins)


def candidates_of(texts: Array) -> Array:
    """Returns what may follow an anchor: all positives, then all hard negatives.

    Args:
      texts: (B, K, ...) of each row an anchor, a positive and K - 2 hard negatives.

    Returns:
      (B (K - 1), ...), of which the first B are the positives of the rows.
    """
    return jnp.concatenate([texts[:, k] for k in range(1, texts.shape[1])])


def infonce(
    vectors: Float[Array, "B K D"],
    keys: Int[Array, "B K 2"],
    weights: Float[Array, "B"],
    scale: Float[Array, ""] | float,
    *,
    symmetric: bool = False,
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Computes -log p of each row's positive among the candidates of the batch.

    The candidates are the positives and hard negatives of all rows (van den Oord et al.
    2018, equation 4; Henderson et al. 2017, section 4.4), without those that
    `same_texts` finds.

    Args:
      vectors: of the anchor, the positive and K - 2 hard negatives of each row.
      keys: equal for equal texts.
      scale: 1 / temperature, the factor of the dot products.
      symmetric: whether the loss is the mean with that of finding the anchor of each
        positive among all anchors.

    Returns:
      The losses, and whether the positive has the largest probability.
    """
    rows = len(vectors)
    anchors, candidates = vectors[:, 0], candidates_of(vectors)
    scores = scale * jnp.einsum("bd,nd->bn", anchors, candidates, precision="highest")
    own = jnp.arange(rows)[:, None] == jnp.arange(len(candidates))[None]
    real = weights > 0
    compared = real[:, None] & jnp.tile(real, len(candidates) // rows)[None]
    out = (same_texts(keys) | ~compared) & ~own
    scores = jnp.where(out, -jnp.inf, scores)
    right = jnp.diagonal(scores)
    losses = jax.nn.logsumexp(scores, axis=1) - right
    if symmetric:
        back = jax.nn.logsumexp(scores[:, :rows], axis=0) - right
        losses = (losses + back) / 2
    return losses, jnp.argmax(scores, axis=1) == jnp.arange(rows)


def cosent(
    similarities: Float[Array, "B"],
    labels: Float[Array, "B"],
    weights: Float[Array, "B"],
    scale: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes log(1 + sum of exp(scale (s_j - s_i))) over pairs with y_i > y_j.

    Only the order of the labels counts (Su 2022, CoSENT). It is one loss for the batch.
    """
    real = weights > 0
    counts = (labels[:, None] > labels[None]) & real[:, None] & real[None]
    gaps = scale * (similarities[None] - similarities[:, None])
    gaps = jnp.where(counts, gaps, -jnp.inf)
    return jax.nn.logsumexp(jnp.append(gaps.ravel(), 0.0))


def triplet(
    similarities: Float[Array, "B N"], margin: float
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Computes max(0, margin - s_p + s_n), the mean over hard negatives.

    Schroff et al. 2015, equation 1, with similarities instead of squared distances.

    Args:
      similarities: of each row's anchor to its positive, and to its N - 1 negatives.

    Returns:
      The losses, and whether the positive is the most similar.
    """
    positive, negatives = similarities[:, :1], similarities[:, 1:]
    losses = jnp.maximum(margin - positive + negatives, 0.0).mean(1)
    return losses, jnp.all(positive > negatives, axis=1)
