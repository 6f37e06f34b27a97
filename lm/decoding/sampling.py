"""Sampling: the compiled programs that read prompts and generate token by token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt

from lm.decoding.cached import NO_TOKEN, CachedModel, one_token_batch, replicated
from lm.ops.sampling import choose, penalise

BLOCK = 16  # tokens that are generated before the host looks at them


class ArraySettings(NamedTuple):
    """The settings that are arguments of the compiled program."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    seed: UInt[Array, ""]


class State(NamedTuple):
    """A batch of texts that are being continued.

    Attributes:
      cache: of the model.
      token: the last one generated, not yet in the cache.
      position: of that token in its text.
      step: how many tokens were generated.
      ended: rows that are complete.
      seen: which tokens of the vocabulary occur in each row.
      row: a number for each row, on which its samples depend.
    """

    cache: PyTree
    token: Int[Array, "B"]
    position: Int[Array, "B"]
    step: Int[Array, ""]
    ended: Bool[Array, "B"]
    seen: Bool[Array, "B V"]
    row: UInt[Array, "B"]


def start(
    model: CachedModel,
    params: PyTree,
    prompts: dict[str, Array],
    row: UInt[Array, "B"],
    settings: ArraySettings,
    max_tokens: int,
) -> State:
    """Reads prompts and generates the first token of each.

    Args:
      prompts: a batch that is padded on the left.
      row: a number for each row, on which its samples depend.
    """
    # The last token of an answer needs no entry in the cache.
    logits, cache = model.prefill(params, prompts, max_tokens - 1)
    lines = jnp.arange(len(logits))[:, None]
    real = prompts["segment_ids"] > 0
    seen = jnp.zeros(logits.shape, bool).at[lines, prompts["inputs"]].max(real)
    state = State(
        cache=cache,
        token=prompts["inputs"][:, -1],
        position=prompts["positions"][:, -1],
        step=jnp.zeros((), jnp.int32),
        ended=~real.any(axis=1),
        seen=seen,
        row=row,
    )
    return replicated(_next_token(model, state, logits, settings))


def advance(
    model: CachedModel,
    params: PyTree,
    state: State,
    settings: ArraySettings,
    stopped: Bool[Array, "B"],
    count: Int[Array, ""],
) -> tuple[State, Int[Array, "B T"]]:
    """Generates up to `count` tokens more, fewer if all rows end."""

    def unfinished(carry: tuple) -> Array:
        i, state, _ = carry
        return (i < count) & ~state.ended.all()

    def generate(carry: tuple) -> tuple:
        i, state, tokens = carry
        batch = one_token_batch(state.token, state.position)
        logits, cache = model.extend(params, batch, state.cache)
        state = _next_token(model, state._replace(cache=cache), logits, settings)
        return i + 1, state, tokens.at[:, i].set(state.token)

    tokens = jnp.full((len(state.token), BLOCK), NO_TOKEN, jnp.int32)
    state = state._replace(ended=state.ended | stopped)
    _, state, tokens = jax.lax.while_loop(unfinished, generate, (0, state, tokens))
    return replicated((state, tokens))


def _next_token(
    model: CachedModel, state: State, logits: Array, settings: ArraySettings
) -> State:
    """Chooses the next token of each row; in a row that has ended it is NO_TOKEN."""
    key = jax.random.key(settings.seed)
    keys = jax.vmap(
        lambda row: jax.random.fold_in(jax.random.fold_in(key, row), state.step)
    )(state.row)
    logits = penalise(logits, state.seen, settings.repetition_penalty)
    token = choose(
        jnp.where(model.allowed, logits, -jnp.inf),
        keys,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
    )
    token = jnp.where(state.ended, NO_TOKEN, token)
    # An index that is out of bounds is dropped; NO_TOKEN, -1, would be the last one.
    column = jnp.where(state.ended, logits.shape[1], token)
    return state._replace(
        token=token,
        position=state.position + 1,
        step=state.step + 1,
        ended=state.ended | model.ended(token),
        seen=state.seen.at[jnp.arange(len(token)), column].set(True, mode="drop"),
    )
