"""Beam search with a cache, compiled as one program from prompts to answers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.decoding.cached import NO_TOKEN, CachedModel, one_token_batch, replicated


class Beams(NamedTuple):
    """A search for B prompts with K live hypotheses each, of up to M tokens.

    Attributes:
      cache: of B x K rows.
      position: of the last token of each prompt's hypotheses in their text.
      step: the length of the live hypotheses in tokens.
      live, live_score: their tokens and log-probabilities, the best first.
      done, done_score: the best hypotheses that have ended, and their scores.
      closed: prompts whose search is over.
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
    model: CachedModel,
    params: PyTree,
    prompts: dict[str, Int[Array, "B P"]],
    alpha: Float[Array, ""],
    *,
    beams: int,
    max_tokens: int,
    penalty: str,
    early_stop: str,
) -> tuple[Int[Array, "B K M"], Float[Array, "B K"]]:
    """Returns the best hypotheses of beam search, the best first, and their scores.

    Tokens after the end are NO_TOKEN; a score of -inf belongs to no hypothesis. A
    hypothesis of `max_tokens` ends there.

    Args:
      params: as `lm.trees.split_layers` returns them.
      alpha, beams, max_tokens, penalty, early_stop: as in lm.decoding.loop.Settings,
        which calls alpha `length_penalty`.
    """
    # The last token of an answer needs no entry in the cache.
    logits, cache = model.prefill(params, prompts, max_tokens - 1)
    count = len(logits)
    empty = jnp.full((count, beams, max_tokens), NO_TOKEN, jnp.int32)
    no_score = jnp.full((count, beams), -jnp.inf)
    state = Beams(
        cache=model.repeat(cache, beams),
        position=prompts["positions"][:, -1],
        step=jnp.zeros((), jnp.int32),
        live=empty,
        live_score=no_score.at[:, 0].set(0.0),
        done=empty,
        done_score=no_score,
        closed=~(prompts["segment_ids"] > 0).any(axis=1),
    )
    divisor = functools.partial(_divisor, alpha=alpha, kind=penalty)
    rank = functools.partial(_rank, model, divisor=divisor, early_stop=early_stop)

    def unfinished(state: Beams) -> jax.Array:
        return (state.step < max_tokens) & ~state.closed.all()

    def extend(state: Beams) -> Beams:
        last = state.step - 1
        last = jax.lax.dynamic_index_in_dim(state.live, last, 2, keepdims=False)
        batch = one_token_batch(last.ravel(), jnp.repeat(state.position, beams))
        logits, cache = model.extend(params, batch, state.cache)
        return rank(state._replace(cache=cache), logits)

    state = rank(state, jnp.repeat(logits, beams, axis=0))
    state = jax.lax.while_loop(unfinished, extend, state)
    return replicated((state.done, state.done_score))


def _rank(
    model: CachedModel,
    state: Beams,
    logits: Float[Array, "R V"],
    *,
    divisor: Callable,
    early_stop: str,
) -> Beams:
    """Extends the hypotheses by one token and keeps the best K that have not ended.

    Of the 2K best continuations at least K have not ended, if one token ends a text.
    Those that have ended become answers if they are among the best K.
    """
    count, beams, max_tokens = state.live.shape
    vocab = logits.shape[-1]
    scores = jnp.where(model.allowed, jax.nn.log_softmax(logits), -jnp.inf)
    scores = state.live_score[:, :, None] + scores.reshape(count, beams, vocab)
    scores, best = jax.lax.top_k(scores.reshape(count, -1), 2 * beams)
    origin, token = best // vocab, (best % vocab).astype(jnp.int32)
    texts = _pick(state.live, origin)
    texts = jax.lax.dynamic_update_index_in_dim(texts, token, state.step, 2)
    length = state.step + 1
    ends = model.ended(token) | (length == max_tokens)

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
        reachable = live_score[:, 0] / divisor(length)
        if early_stop == "exact":
            # As its length grows, a score either only rises or only falls.
            reachable = jnp.maximum(reachable, live_score[:, 0] / divisor(max_tokens))
        closed = reachable <= done_score[:, -1]
    order = jnp.arange(count)[:, None] * beams + origin
    return Beams(
        cache=model.reorder(state.cache, order.ravel()),
        position=state.position + 1,
        step=length,
        live=_pick(texts, kept),
        live_score=live_score,
        done=done,
        done_score=done_score,
        closed=state.closed | closed,
    )


def _divisor(
    length: Int[Array, ""] | int, *, alpha: Float[Array, ""], kind: str
) -> Float[Array, ""]:
    """Returns the number that the log-probability of a hypothesis is divided by."""
    length = jnp.asarray(length, jnp.float32)
    return ((5.0 + length) / 6.0 if kind == "gnmt" else length) ** alpha


def _pick(texts: Int[Array, "B J M"], which: Int[Array, "B K"]) -> Int[Array, "B K M"]:
    """Selects hypotheses of each prompt by index."""
    return jnp.take_along_axis(texts, which[:, :, None], axis=1)
