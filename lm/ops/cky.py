"""Charts of context-free grammars: inside, Viterbi, membership and expected counts, all
sentences of a length at once.

A grammar in Chomsky normal form has binary rules (parent -> left right), whose weights
are log-probabilities, and the scores of symbols as the first of a tree and above each
word. Weights need not sum to 1. B is sentences, T words, S symbols, R binary rules. A
chart has an entry for each symbol and span; spans of one width are computed together,
by sums over the places where they part. Symbols are an axis before the spans, so that
the children of a rule are rows, which are copied as a whole (Younger 1967; Baker 1979).

What is summed is said by a semiring (Goodman 1999): probabilities for inside, the
larger of two for the best tree, true and false for membership. Expected counts are the
gradient of the log-probability with respect to the weights.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

WIDTHS = 4  # of spans, whose computation is compiled once


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


class Semiring(NamedTuple):
    """How the values of trees are put together.

    Attributes:
      zero: the value of a span without a tree; `times` gives it back.
      of: makes values of logarithms.
      times, plus: of values, elementwise.
      total: sums the rules of each parent, as jax.ops.segment_sum does.
      scaled: whether values are kept relative to the largest one of their span.
    """

    zero: float | bool
    of: Callable[[jax.Array], jax.Array]
    times: Callable[[jax.Array, jax.Array], jax.Array]
    plus: Callable[[jax.Array, jax.Array], jax.Array]
    total: Callable[..., jax.Array]
    scaled: bool = False


SUM = Semiring(0.0, jnp.exp, jnp.multiply, jnp.add, jax.ops.segment_sum, True)
MAX = Semiring(-jnp.inf, jnp.asarray, jnp.add, jnp.maximum, jax.ops.segment_max)
ANY = Semiring(
    False,
    lambda logs: logs > -jnp.inf,
    jnp.logical_and,
    jnp.logical_or,
    jax.ops.segment_max,
)


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
    chart, scales = _fill(SUM, rules, words)
    assert scales is not None  # sums are scaled
    first, top = _scaled(start[:, None, None])
    roots, scale = chart.roots(lengths), scales.roots(lengths)[:, 0] + top[0, 0]
    total = jnp.einsum("bs,s->b", roots, first[:, 0, 0], precision="highest")
    return jnp.where(lengths > 0, _log(total) + scale, -jnp.inf)


def recognize(
    rules: Rules,
    start: Float[Array, "S"],
    words: Float[Array, "S B T"],
    lengths: Int[Array, "B"],
) -> Bool[Array, "B"]:
    """Tells which sentences have a tree; the arguments are those of `inside`.

    Of the weights it counts alone whether they are -inf, so nothing is lost by range.
    """
    chart, _ = _fill(ANY, rules, words)
    return jnp.any(chart.roots(lengths) & ANY.of(start), axis=1) & (lengths > 0)


class _Chart(NamedTuple):
    """Values of each span, by width: one array by starts, one by the last words.

    There is room for spans that begin where they no longer end within the sentence.
    """

    starts: Array  # (T, S, B, T + WIDTHS)
    ends: Array

    @classmethod
    def empty(cls, shape: tuple[int, int, int], fill: Array) -> "_Chart":
        S, B, T = shape
        values = jnp.full((T, S, B, T + WIDTHS), fill)
        return cls(values, values)

    def put(self, width: Int[Array, ""], values: Shaped[Array, "S B n"]) -> "_Chart":
        """Adds the spans of a width that begin at the first n words."""
        values, none = values[None], jnp.zeros_like(width)
        return _Chart(
            jax.lax.dynamic_update_slice(
                self.starts, values, (width - 1, none, none, none)
            ),
            jax.lax.dynamic_update_slice(
                self.ends, values, (width - 1, none, none, width - 1)
            ),
        )

    def halves(
        self, width: Int[Array, ""], most: int, count: int
    ) -> tuple[Shaped[Array, "k S B n"], Shaped[Array, "k S B n"]]:
        """Returns the left and right halves of spans, for each place to part them.

        Args:
          most: how many places; of those that the width has not, one half is empty.
          count: spans, which begin at the first words.
        """
        places = jnp.maximum(width - 2 - jnp.arange(most), 0)
        right = jax.lax.dynamic_slice_in_dim(self.ends, width - 1, count, 3)
        return self.starts[:most, :, :, :count], right[places]

    def roots(self, lengths: Int[Array, "B"]) -> Shaped[Array, "B S"]:
        """Returns the values of the spans of whole sentences."""
        rows = jnp.arange(len(lengths))
        return self.starts[jnp.maximum(lengths - 1, 0), :, rows, 0]


def _fill(
    ring: Semiring, rules: Rules, words: Float[Array, "S B T"]
) -> tuple[_Chart, _Chart | None]:
    """Computes the values of all spans, and their scales as logarithms.

    WIDTHS widths are a loop over one body, so that a program has few of them: each
    takes half a second to compile, and a loop over all widths would have three times
    the work.
    """
    S, B, T = words.shape
    weights = ring.of(rules.weights)[:, None, None]

    @jax.checkpoint
    def add(sums: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        left, right, share = part
        left = left if share is None else left * share
        both = ring.times(left[rules.left], right[rules.right])
        return ring.plus(sums, both), None

    def wider(
        charts: tuple[_Chart, _Chart | None],
        width: jax.Array,
        most: int,
        count: int,
    ) -> tuple[tuple[_Chart, _Chart | None], None]:
        chart, scales = charts
        share, top = None, jnp.zeros((B, count))
        if scales is not None:
            # Each place where a span can part has the scale of its two halves.
            halves = sum(scales.halves(width, most, count))
            top = jax.lax.stop_gradient(jnp.max(halves, axis=0))[0]
            top = jnp.where(jnp.isfinite(top), top, 0.0)
            share = jnp.exp(halves - top)
        none = jnp.full((len(weights), B, count), ring.zero, weights.dtype)
        parts = (*chart.halves(width, most, count), share)
        sums, _ = jax.lax.scan(add, none, parts)
        every = ring.times(weights, sums)
        found = ring.total(every, rules.parent, S, indices_are_sorted=True)
        if scales is not None:
            found, scale = _scaled_from(found, top)
            scales = scales.put(width, scale[None])
        return (chart.put(width, found), scales), None

    values, scales, one = ring.of(words), None, jnp.int32(1)
    if ring.scaled:
        values, scale = _scaled(words)
        scales = _Chart.empty((1, B, T), jnp.float32(-jnp.inf)).put(one, scale[None])
    chart = _Chart.empty((S, B, T), jnp.asarray(ring.zero, values.dtype))
    charts = chart.put(one, values), scales
    for first in range(2, T + 1, WIDTHS):
        last = min(first + WIDTHS - 1, T)
        step = functools.partial(wider, most=last - 1, count=T - first + 1)
        widths = jnp.arange(first, last + 1, dtype=jnp.int32)
        charts, _ = jax.lax.scan(step, charts, widths)
    return charts


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
    T = words.shape[2]
    chart, _ = _fill(MAX, rules, words)
    final = chart.roots(lengths) + start
    scores = jnp.where(lengths > 0, jnp.max(final, axis=1), -jnp.inf)
    by_row = jnp.transpose(chart.starts[..., :T], (2, 0, 3, 1))  # (B, T, T, S)
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


def table_of(entries: Int[np.ndarray, "L"], size: int) -> Int[np.ndarray, "E M"]:
    """Returns for each entry the numbers of its rules, -1 where there are no more."""
    order = np.argsort(entries, kind="stable")
    counts = np.bincount(entries, minlength=size)
    column = np.arange(len(entries)) - (np.cumsum(counts) - counts)[entries[order]]
    table = np.full((size, max(int(counts.max()), 1)), -1, np.int32)
    table[entries[order], column] = order
    return table
