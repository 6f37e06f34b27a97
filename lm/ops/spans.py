"""The best spans of tokens by a score of their first and of their last token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = -1e9  # the score of what is excluded; finite, so that sums of it are


class Spans(NamedTuple):
    """The best spans of each row, N of them, the best first.

    Attributes:
      starts, ends: (B, N) the first and the last token.
      scores: (B, N) the sums of both scores; at most NEVER where there is no span.
    """

    starts: Int[Array, "B N"]
    ends: Int[Array, "B N"]
    scores: Float[Array, "B N"]


def best(
    starts: Float[Array, "B T"],
    ends: Float[Array, "B T"],
    may_begin: Bool[Array, "B T"],
    may_end: Bool[Array, "B T"],
    *,
    most: int,
    count: int,
) -> Spans:
    """Finds the best spans of 1 to `most` tokens among all there are.

    Of equal ones the first is better. Every pair is looked at, not only pairs of the
    best starts and ends, among which there may be no span at all.

    Args:
      starts, ends: the score of each token as the first and as the last one.
      may_begin, may_end: where a span may begin and end.
      count: how many are wanted; there are fewer in rows of fewer pairs.
    """
    length = starts.shape[1]
    most = min(most, length)
    begin = jnp.where(may_begin, starts, NEVER)
    end = jnp.where(may_end, ends, NEVER)
    end = jnp.pad(end, ((0, 0), (0, most - 1)), constant_values=NEVER)
    pairs = [begin + end[:, more : more + length] for more in range(most)]
    scores = jnp.stack(pairs, axis=-1).reshape(len(starts), -1)
    top, at = jax.lax.top_k(scores, min(count, scores.shape[1]))
    first = at // most
    return Spans(first, first + at % most, top)
