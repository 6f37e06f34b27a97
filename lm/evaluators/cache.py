"""A continuous cache: words of the recent past become more probable.

Grave et al. 2017, Improving neural language models with a continuous cache, equations
2 to 5.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm.evaluators import base, streams
from lm.objectives.base import Batch, Objective

BOUNDS = {"window": "[1, 1048576]", "theta": "[0, inf)", "weight": "[0, 1)"}


class Memory(NamedTuple):
    """The last states of each row, and the words that followed them.

    Attributes:
      keys: hidden states.
      words: the word after each.
      texts: the number of the text of each; -1 where there is none.
      text: the number of the text that the row is in.
    """

    keys: Float[Array, "B W D"]
    words: Int[Array, "B W"]
    texts: Int[Array, "B W"]
    text: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Evaluator(streams.StreamEvaluator):
    """The perplexity of a model with a cache of its last states.

    The probability of a word is `weight` times that of the cache, plus the rest times
    that of the model. The cache gives each of the last `window` words w of the text
    after a state h a share in proportion to exp(theta h . h'), where h' is the state
    now. It is emptied where positions begin at 0, as a carried state is.

    Yields `perplexity` and `loss` (nats) of the best pair of `theta` and `weight`,
    `theta` and `weight` themselves, and `plain_perplexity` without the cache, and the
    intervals of the first two over rows. Pairs that are compared belong on a validation
    set; on a test set give one.

    Attributes:
      window: words in the cache.
      theta: values of the flatness of the cache; 0 gives all its words equal shares.
      weight: values of the share of the cache.
    """

    window: int = 2000
    theta: tuple[float, ...] = (0.3,)
    weight: tuple[float, ...] = (0.1,)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        names = ("loss", "perplexity", "theta", "weight", "plain_perplexity", "targets")
        return names + (streams.ENDS if self.resamples else ())

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        step = self._compiled(model.module)
        memory: Any = None
        parts: list[list[np.ndarray]] = [[], [], []]
        for batch in examples.batches():
            if memory is None:
                rows = len(batch["inputs"])
                carried = streams.start(model.module, rows)
                memory = self._empty(model, carried, batch)
            found, carried, memory = step(model.params, carried, memory, batch)
            for each, of_rows in zip(parts, found):
                each.append(np.asarray(of_rows, np.float64))
        nats, own, targets = (np.concatenate(each, axis=-1) for each in parts)
        plain, count = float(own.sum()), float(targets.sum())
        means = nats.sum(axis=-1) / max(count, 1.0)
        best = np.unravel_index(int(np.argmin(means)), means.shape)
        pairs = list(itertools.product(self.theta, self.weight))
        if len(pairs) > 1:
            shown = (
                f"theta={t:g} weight={w:g}: {math.exp(min(x, 700.0)):.2f}"
                for (t, w), x in zip(pairs, means.ravel())
            )
            out.note(f"cache: perplexity by {'; '.join(shown)}")
        yield "loss", float(means[best])
        yield "perplexity", math.exp(min(means[best], 700.0))
        yield "theta", self.theta[best[0]]
        yield "weight", self.weight[best[1]]
        yield "plain_perplexity", math.exp(min(plain / max(count, 1.0), 700.0))
        yield "targets", count
        yield from self.bounds(np.stack([nats[best], targets], axis=1))

    def _empty(self, model: base.Functions, carried: Any, batch: Batch) -> Memory:
        """Returns a memory without words."""

        def hidden(module: Any, batch: Batch) -> Array:
            return module(batch, train=False)

        rows = len(batch["inputs"])
        shape = jax.eval_shape(
            lambda p, c, b: streams.apply(model.module, p, c, b, hidden)[0],
            *(model.params, carried, batch),
        )
        none = jnp.full((rows, self.window), -1)
        keys = jnp.zeros((rows, self.window, shape.shape[-1]), shape.dtype)
        return Memory(keys, none, none, jnp.zeros(rows, jnp.int32))

    @functools.cached_property
    def _functions(self) -> dict[Any, Callable]:
        return {}

    def _compiled(self, module: Any) -> Callable:
        """Returns the function of a batch, which is compiled once for a run."""

        def step(params: Any, carried: Any, memory: Memory, batch: Batch) -> tuple:
            def read(module: Any, batch: Batch) -> tuple[Array, Array]:
                hidden = module(batch, train=False)
                table, logits = module.token_head()
                scores = jax.nn.log_softmax(logits(hidden, table))
                chosen = batch["targets"][..., None]
                return hidden, jnp.take_along_axis(scores, chosen, axis=-1)[..., 0]

            (hidden, own), carried = streams.apply(module, params, carried, batch, read)
            memory, whole, seen = remember(memory, hidden, batch, self.window)
            weights = batch["weights"]
            rows = []
            for theta in self.theta:
                cached = cache_log_probs(hidden, whole, seen, batch["targets"], theta)
                rows.append([self._sum(own, *cached, w, weights) for w in self.weight])
            plain = -jnp.sum(jnp.where(weights > 0, own * weights, 0.0), axis=1)
            return (jnp.asarray(rows), plain, weights.sum(axis=1)), carried, memory

        key = id(module)
        if key not in self._functions:
            self._functions[key] = jax.jit(step)
        return self._functions[key]

    def _sum(
        self, own: Array, cached: Array, any_seen: Array, weight: float, weights: Array
    ) -> Array:
        """Returns the loss of each row's targets, (B,); an empty cache has no share."""
        mixed = own
        if weight:
            both = jnp.logaddexp(math.log1p(-weight) + own, math.log(weight) + cached)
            mixed = jnp.where(any_seen, both, own)
        return -jnp.sum(jnp.where(weights > 0, mixed * weights, 0.0), axis=1)


def remember(
    memory: Memory, hidden: Float[Array, "B T D"], batch: Batch, window: int
) -> tuple[Memory, Memory, Bool[Array, "B T S"]]:
    """Adds the states of a batch to a memory.

    Returns:
      The memory for the next batch, one of all S = W + T states that this batch may
      see, and which of them each position sees: the last `window` before it, of its
      own text.
    """
    real = batch["segment_ids"] != 0
    begins = (batch["positions"] == 0) & real
    text = memory.text[:, None] + jnp.cumsum(begins, axis=1)
    whole = Memory(
        jnp.concatenate([memory.keys, hidden], axis=1),
        jnp.concatenate([memory.words, batch["targets"]], axis=1),
        jnp.concatenate([memory.texts, jnp.where(real, text, -1)], axis=1),
        text[:, -1],
    )
    at = jnp.arange(hidden.shape[1])[:, None]
    place = jnp.arange(whole.texts.shape[1])[None]
    near = (place >= at) & (place < at + window)
    seen = near[None] & (whole.texts[:, None] == text[..., None])
    keys, words, texts, text_now = whole
    new = Memory(keys[:, -window:], words[:, -window:], texts[:, -window:], text_now)
    return new, whole, seen


def cache_log_probs(
    hidden: Float[Array, "B T D"],
    whole: Memory,
    seen: Bool[Array, "B T S"],
    targets: Int[Array, "B T"],
    theta: float,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Returns log p of each target in the cache, and whether the cache has a word."""
    scores = jnp.einsum(
        "btd,bsd->bts", hidden, whole.keys, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen, theta * scores, -jnp.inf)
    hits = whole.words[:, None] == targets[..., None]
    any_seen = seen.any(axis=-1)
    total = jax.nn.logsumexp(jnp.where(any_seen[..., None], scores, 0.0), axis=-1)
    hit = jax.nn.logsumexp(jnp.where(hits, scores, -jnp.inf), axis=-1)
    return hit - total, any_seen
