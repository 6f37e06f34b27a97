"""Charts of probabilistic grammars: inside, Viterbi and expected counts, all sentences
of a length at once.

A grammar in Chomsky normal form has binary rules (parent -> left right), whose weights
are log-probabilities, and the scores of symbols as the first of a tree and above each
word. Weights need not sum to 1. B is sentences, T words, S symbols, R binary rules. A
chart has an entry for each symbol and span; spans of one width are computed together,
by sums over the places where they part. Symbols are an axis before the spans, so that
the children of a rule are rows, which are copied as a whole (Younger 1967; Baker 1979;
Goodman 1999).

Expected counts are the gradient of the log-probability with respect to the weights.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rules(NamedTuple):
    """Binary rules, sorted by parent.

    Attributes:
      parent, left, right: the numbers of the symbols.
      weights: logarithms, in nats.
    """

    parent: Int[Array, "R"]
    left: Int[Array, "R"]
    right: Int[Array, "R"]
    weights: Float[Array, "R"]


class Parse(NamedTuple):
    """The best tree of each sentence, its nodes from the top down, left before right.

    Attributes:
      scores: logarithms of the weights of the trees; -inf where there is none.
      nodes: start, width and symbol of each of the 2 T - 1 nodes; width 0 where a
        sentence has no more nodes. They have no meaning for a score of -inf.
    """

    scores: Float[Array, "B"]
    nodes: Int[Array, "B N 3"]


def inside(
    rules: Rules,
    start: Float[Array, "S"],
    words: Float[Array, "S B T"],
    lengths: Int[Array, "B"],
) -> Float[Array, "B"]:
    """Computes the logarithm of the sum over the trees of each sentence.

    The entries of a span are kept relative to the largest of them; those below exp(-87)
    of it are lost. -inf for a sentence without a tree, with a gradient of zero.

    Args:
      start: the scores of the symbols as the root.
      words: the scores of the symbols above each word.
      lengths: from 0; a sentence without words has no tree.
    """
    S, B, T = words.shape
    chart = _Chart(S, B, T, 0.0)
    scales = _Chart(1, B, T, -jnp.inf)
    weights = jnp.exp(rules.weights)[:, None, None]

    @jax.checkpoint
    def add(sums: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        left, right, share = part
        return sums + (left * share)[rules.left] * right[rules.right], None

    values, scale = _scaled(words)
    chart.put(1, values)
    scales.put(1, scale)
    for width in range(2, T + 1):
        # Each place where a span can part has the scale of its two halves.
        halves = sum(scales.halves(width))
        top = jax.lax.stop_gradient(jnp.max(halves, axis=0))[0]
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        shares = jnp.exp(halves - top)
        zeros = jnp.zeros((len(weights), *top.shape), words.dtype)
        sums, _ = jax.lax.scan(add, zeros, (*chart.halves(width), shares))
        found = jax.ops.segment_sum(
            weights * sums, rules.parent, S, indices_are_sorted=True
        )
        values, scale = _scaled_from(found, top)
        chart.put(width, values)
        scales.put(width, scale)
    first, top = _scaled(start[:, None, None])
    roots, scale = chart.roots(lengths), scales.roots(lengths)[:, 0] + top[0, 0]
    total = jnp.einsum("bs,s->b", roots, first[:, 0, 0], precision="highest")
    return jnp.where(lengths > 0, _log(total) + scale, -jnp.inf)


class _Chart:
    """Values of each span, by width: one array by starts, one by the last words."""

    def __init__(self, S: int, B: int, T: int, fill: float):
        self.starts = self.ends = jnp.full((T, S, B, T), fill, jnp.float32)

    def put(self, width: int, values: Float[Array, "*S B n"]) -> None:
        values = values.reshape(-1, *values.shape[-2:])
        count = values.shape[-1]
        self.starts = self.starts.at[width - 1, :, :, :count].set(values)
        self.ends = self.ends.at[width - 1, :, :, width - 1 :].set(values)

    def halves(self, width: int) -> tuple[Float[Array, "k S B n"], jax.Array]:
        """Returns the left and right halves of spans, for each place to part them."""
        count = len(self.starts) - width + 1
        right = self.ends[: width - 1, :, :, width - 1 :][::-1]
        return self.starts[: width - 1, :, :, :count], right

    def roots(self, lengths: Int[Array, "B"]) -> Float[Array, "B S"]:
        """Returns the values of the spans of whole sentences."""
        rows = jnp.arange(len(lengths))
        return self.starts[jnp.maximum(lengths - 1, 0), :, rows, 0]


def _log(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Computes the logarithm; that of 0 is -inf, with a gradient of zero."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


def _scaled(scores: Float[Array, "S B T"]) -> tuple[jax.Array, jax.Array]:
    """Returns exp(scores) relative to the largest of each span, and its logarithm."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=0))
    finite = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.exp(scores - finite), top


def _scaled_from(found: Float[Array, "S B T"], scale: Float[Array, "B T"]) -> tuple:
    """Divides by the largest entry of each span; the scale of zeros is -inf."""
    top = jax.lax.stop_gradient(jnp.max(found, axis=0))
    return found / jnp.where(top > 0, top, 1.0), scale + _log(top)


def viterbi(
    rules: Rules,
    start: Float[Array, "S"],
    words: Float[Array, "S B T"],
    lengths: Int[Array, "B"],
) -> Parse:
    """Finds the best tree of each sentence; the arguments are those of `inside`.

    Among equal trees of a span it takes that with the shortest first half.
    """
    S, B, T = words.shape
    chart = _Chart(S, B, T, -jnp.inf)
    weights = rules.weights[:, None, None]

    def better(best: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        left, right = part
        return jnp.maximum(best, left[rules.left] + right[rules.right]), None

    chart.put(1, words)
    for width in range(2, T + 1):
        none = jnp.full((len(weights), B, T - width + 1), -jnp.inf, words.dtype)
        best, _ = jax.lax.scan(better, none, chart.halves(width))
        found = jax.ops.segment_max(
            best + weights, rules.parent, S, indices_are_sorted=True
        )
        chart.put(width, found)
    final = chart.roots(lengths) + start
    scores = jnp.where(lengths > 0, jnp.max(final, axis=1), -jnp.inf)
    by_row = jnp.transpose(chart.starts, (2, 0, 3, 1))  # (B, T, T, S)
    walk = functools.partial(_walk, rules)
    return Parse(scores, jax.vmap(walk)(by_row, jnp.argmax(final, axis=1), lengths))


def _walk(
    rules: Rules, chart: Float[Array, "T T S"], root: Int[Array, ""], length: jax.Array
) -> Int[Array, "N 3"]:
    """Finds the nodes of the best tree of a sentence from its chart.

    It takes a node from a stack, and puts its two children there.
    """
    T = len(chart)
    k = jnp.arange(1, T)

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        stack, size = carry
        node = jnp.where(size > 0, stack[jnp.maximum(size - 1, 0)], 0)
        at, width, symbol = node
        left = chart[k - 1, at]
        right = chart[jnp.maximum(width - k - 1, 0), jnp.minimum(at + k, T - 1)]
        ways = left[:, rules.left] + right[:, rules.right] + rules.weights
        ways = jnp.where((k < width)[:, None], ways, -jnp.inf)
        ways = jnp.where(rules.parent == symbol, ways, -jnp.inf)
        part, rule = jnp.divmod(jnp.argmax(ways), len(rules.weights))
        second = jnp.stack([at + part + 1, width - part - 1, rules.right[rule]])
        first = jnp.stack([at, part + 1, rules.left[rule]])
        size = jnp.maximum(size - 1, 0)
        grown = stack.at[size].set(second).at[size + 1].set(first)
        parts = width > 1
        return (jnp.where(parts, grown, stack), size + 2 * parts), node

    stack = jnp.zeros((T + 2, 3), jnp.int32)
    stack = stack.at[0].set(jnp.stack([0, length, root]).astype(jnp.int32))
    return jax.lax.scan(step, (stack, (length > 0) * 1), None, 2 * T - 1)[1]
