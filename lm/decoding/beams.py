"""Beam search over a model with a cache, one program from prompt to answers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.decoding.reader import NOTHING, Reader, everywhere, one_token


class Beams(NamedTuple):
    """A search for B prompts, K live hypotheses each, of up to M tokens.

    Attributes:
      cache: its rows are B x K.
      position: of the last tokens in their text.
      step: tokens said by the live hypotheses.
      live, live_score: their tokens and log-probabilities, the best first.
      done, done_score: the best of those that ended, and their scores.
      closed: prompts whose result is known.
    """

    cache: PyTree
    position: Int[Array, "B"]
    step: Int[Array, ""]
    live: Int[Array, "B K M"]
    live_score: Float[Array, "B K"]
    done: Int[Array, "B K M"]
    done_score: Float[Array, "B K"]
    closed: Bool[Array, "B"]


def search(
    reader: Reader,
    params: PyTree,
    prompts: dict[str, Int[Array, "B P"]],
    alpha: Float[Array, ""],
    *,
    beams: int,
    max_tokens: int,
    penalty: str,
    early_stop: str,
) -> tuple[Int[Array, "B K M"], Float[Array, "B K"]]:
    """The best hypotheses that beam search finds, and their scores.

    Tokens after the end are NOTHING; a score of -inf is of no hypothesis. What has not
    ended after `max_tokens` ends there. The settings: lm.decoding.loop.Settings.
    """
    # The last token of an answer is never read.
    logits, cache = reader.read(params, prompts, max_tokens - 1)
    count = len(logits)
    nothing = jnp.full((count, beams, max_tokens), NOTHING, jnp.int32)
    no_score = jnp.full((count, beams), -jnp.inf)
    state = Beams(
        cache=reader.repeat(cache, beams),
        position=prompts["positions"][:, -1],
        step=jnp.zeros((), jnp.int32),
        live=nothing,
        live_score=no_score.at[:, 0].set(0.0),
        done=nothing,
        done_score=no_score,
        closed=~(prompts["segment_ids"] > 0).any(axis=1),
    )
    divisor = functools.partial(_divisor, alpha=alpha, kind=penalty)
    rank = functools.partial(_rank, reader, divisor=divisor, early_stop=early_stop)

    def going(state: Beams) -> jax.Array:
        return (state.step < max_tokens) & ~state.closed.all()

    def token(state: Beams) -> Beams:
        last = state.step - 1
        last = jax.lax.dynamic_index_in_dim(state.live, last, 2, keepdims=False)
        batch = one_token(last.ravel(), jnp.repeat(state.position, beams))
        logits, cache = reader.extend(params, batch, state.cache)
        return rank(state._replace(cache=cache), logits)

    state = rank(state, jnp.repeat(logits, beams, axis=0))
    state = jax.lax.while_loop(going, token, state)
    return everywhere((state.done, state.done_score))


def _rank(
    reader: Reader,
    state: Beams,
    logits: Float[Array, "R V"],
    *,
    divisor: Callable,
    early_stop: str,
) -> Beams:
    """One more token: the best K that have not ended go on.

    Among the 2K best continuations these are at least K. Those that end count as
    answers if they are among the first K.
    """
    count, beams, max_tokens = state.live.shape
    words = logits.shape[-1]
    scores = jnp.where(reader.allowed, jax.nn.log_softmax(logits), -jnp.inf)
    scores = state.live_score[:, :, None] + scores.reshape(count, beams, words)
    scores, best = jax.lax.top_k(scores.reshape(count, -1), 2 * beams)
    origin, word = best // words, (best % words).astype(jnp.int32)
    texts = _pick(state.live, origin)
    texts = jax.lax.dynamic_update_index_in_dim(texts, word, state.step, 2)
    length = state.step + 1
    ends = reader.ended(word) | (length == max_tokens)

    counts = ends & (jnp.arange(2 * beams) < beams) & ~state.closed[:, None]
    new_scores = jnp.where(counts, scores / divisor(length), -jnp.inf)
    merged = jnp.concatenate([state.done_score, new_scores], axis=1)
    done_score, kept = jax.lax.top_k(merged, beams)
    done = _pick(jnp.concatenate([state.done, texts], axis=1), kept)

    live_score, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    origin = jnp.take_along_axis(origin, kept, axis=1)
    if early_stop == "full":
        closed = (done_score > -jnp.inf).all(axis=1)
    else:
        reach = live_score[:, 0] / divisor(length)
        if early_stop == "exact":
            # In the length a score only rises or only falls.
            reach = jnp.maximum(reach, live_score[:, 0] / divisor(max_tokens))
        closed = reach <= done_score[:, -1]
    order = jnp.arange(count)[:, None] * beams + origin
    return Beams(
        cache=reader.reorder(state.cache, order.ravel()),
        position=state.position + 1,
        step=length,
        live=_pick(texts, kept),
        live_score=live_score,
        done=done,
        done_score=done_score,
        closed=state.closed | closed,
    )


def _divisor(length: jax.Array | int, *, alpha: jax.Array, kind: str) -> jax.Array:
    length = jnp.asarray(length, jnp.float32)
    return ((5.0 + length) / 6.0 if kind == "gnmt" else length) ** alpha


def _pick(texts: Int[Array, "B J M"], which: Int[Array, "B K"]) -> Int[Array, "B K M"]:
    return jnp.take_along_axis(texts, which[:, :, None], axis=1)
