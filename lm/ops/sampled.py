"""A softmax cross-entropy over a large vocabulary, estimated from a sample of words.

The sum over all words is replaced by a sum over n of them, each divided by the
probability with which it is drawn (Jean et al. 2015, section 3.2; Jozefowicz et al.
2016, section 3.1). The sample is shared by all targets of a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.ops import losses
from lm.ops.losses import Logits

UNITS = 2**31 - 1  # of the integers by which words are drawn


class Sample(NamedTuple):
    """Distinct words, and how probable it was that each would be drawn.

    Attributes:
      ids: (n,) token ids.
      log_rates: (n,) logarithms of the probabilities to be in the sample.
    """

    ids: Int[Array, " n"]
    log_rates: Float[Array, " n"]


def rates(vocab: int, count: int) -> Float[np.ndarray, " V"]:
    """Returns the probability of each word to be among `count` distinct ones.

    It is proportional to log((k + 2) / (k + 1)) for id k, and at most 1: the
    log-uniform distribution, which is near to that of words whose ids are sorted by
    falling frequency (Zipf 1949). Frequent words may be in every sample.
    """
    count = min(count, vocab)
    shares = np.log1p(1.0 / np.arange(1.0, vocab + 1.0))
    rest = np.cumsum(shares[::-1])[::-1]  # of word k and all after it
    sure = np.arange(vocab)
    # The factor of the shares if the words before k are in every sample.
    factors = np.maximum(count - sure, 0) / rest
    first = int(np.argmax(factors * shares <= 1.0)) if count < vocab else vocab
    found = np.ones(vocab)
    found[first:] = factors[first] * shares[first:] if first < vocab else 1.0
    return found


def draw(key: jax.Array, vocab: int, count: int) -> Sample:
    """Draws `count` distinct words of a vocabulary, each with its rate of `rates`.

    This is systematic sampling (Madow 1949): the words lie one after the other on a
    line, each as long as its rate, and one number in [0, 1) shifts a ruler with a mark
    at every unit. So the number of words is fixed, the rates are exact, and a draw
    costs a search in a sorted table.
    """
    found = rates(vocab, count)
    sure = int((found == 1.0).sum())  # They come first, as rates fall.
    marks = min(count, vocab) - sure
    certain = jnp.arange(sure, dtype=jnp.int32)
    if not marks:
        return Sample(certain, jnp.zeros(sure))
    unit = UNITS // marks
    ends = np.rint(np.cumsum(found[sure:]) * unit).astype(np.int64)
    ends[-1] = marks * unit
    log_rates = np.log(np.maximum(np.diff(ends, prepend=0), 1) / unit)
    shift = jax.random.randint(key, (), 0, unit, jnp.int32)
    places = shift + unit * jnp.arange(marks, dtype=jnp.int32)
    chosen = jnp.searchsorted(
        jnp.asarray(ends, jnp.int32), places, side="right", method="sort"
    )
    return Sample(
        jnp.concatenate([certain, sure + chosen.astype(jnp.int32)]),
        jnp.concatenate([jnp.zeros(sure), jnp.asarray(log_rates, jnp.float32)[chosen]]),
    )


def sampled_cross_entropy(
    logits: Logits,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    sample: Sample,
    *,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Estimates `losses.chunked_cross_entropy` from a sample of the words.

    The target is always part of the sum, once. The expectation of the sum is that of
    the softmax, so that the loss is exact if all words are drawn, and below it in the
    mean otherwise, by the concavity of the logarithm.

    Args:
      logits: (hidden, rows of the table) -> float32 logits.
      sample: of `draw`.
      z_loss: see `losses.token_losses`.
    """
    words = table[sample.ids]

    def total(part: tuple) -> jax.Array:
        hidden, targets, weights = part
        own = jax.vmap(lambda h, row: logits(h[None], row[None])[0, 0])
        rows = table[targets].reshape(-1, table.shape[-1])
        chosen = own(hidden.reshape(-1, hidden.shape[-1]), rows).reshape(targets.shape)
        others = logits(hidden, words).astype(jnp.float32) - sample.log_rates
        hit = sample.ids == targets[..., None]
        others = jax.nn.logsumexp(jnp.where(hit, -jnp.inf, others), axis=-1)
        log_total = jnp.logaddexp(others, chosen)
        found = log_total - chosen
        if z_loss:
            found = found + z_loss * jnp.square(log_total)
        return losses.weighted(found, weights)[0]

    rows, length = targets.shape
    chunk = losses.chunk_of(rows, length, len(sample.ids))
    whole = hidden, targets, weights
    if chunk >= length:
        return total(whole), weights.astype(jnp.float32).sum()
    parts = tuple(losses.in_chunks(array, chunk) for array in whole)
    sums = jax.lax.map(jax.checkpoint(total), parts)
    return sums.sum(), weights.astype(jnp.float32).sum()
