"""Smoothing of n-gram counts: discounted probabilities and back-off weights.

    p(w | h) = u(w | h) + gamma(h) p(w | h'),  h' being h without its first symbol,

down to the uniform distribution over the vocabulary (Chen and Goodman 1998). A function
here gets the counts of all orders and gives u and gamma of each order; `stupid_backoff`
differs in that an n-gram that was seen has nothing of the lower order. n-grams that are
pruned lose their u to the gamma of their context, so that every history sums to one.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from lm.errors import DataError
from lm.ops import backoff, ngrams
from lm.ops.backoff import Contexts, Order, Tree


class Counts(NamedTuple):
    """The n-grams of one order, in the order of `order.ids`, and their counts.

    Attributes:
      raw: how often each occurs.
      adjusted: `raw` for the highest order and for n-grams that begin a text; otherwise
        the number of distinct preceding symbols (Kneser and Ney 1995).
      exact: how often each occurs at the beginning of a text, with nothing before it.
      kept: those that are not pruned.
    """

    order: Order
    raw: Int64[np.ndarray, "_"]
    adjusted: Int64[np.ndarray, "_"]
    exact: Int64[np.ndarray, "_"]
    kept: Bool[np.ndarray, "_"]

    def by_context(self, values: np.ndarray) -> Float[np.ndarray, "_"]:
        """Adds up the values of the n-grams of each context."""
        size = len(self.order.starts) - 1
        return np.bincount(self.order.rows, values.astype(np.float64), size)


Part = tuple[np.ndarray, np.ndarray]  # u of each n-gram, gamma of each context


# ── Counts of every order ───────────────────────────────────────────────────────────


def count(
    grams: Int[np.ndarray, "_ _"],
    counts: Int64[np.ndarray, "_"],
    words: Bool[np.ndarray, "V"],
    prune: tuple[int, ...] = (),
) -> tuple[list[Counts], list[Contexts]]:
    """Counts the n-grams of all orders from those of the highest.

    Args:
      grams: distinct; a text is preceded by the symbol V, which is no part of the
        n-grams of lower orders. A symbol that is no word begins a text.
      prune: of order 1, 2, ...: n-grams that occur so often or less are pruned; the
        last holds for all further orders.
    """
    begin, highest = len(words), grams.shape[1]
    backwards = cut(grams, words)[:, ::-1]
    pick = np.lexsort(ngrams.pack(backwards, begin + 1).T[::-1])
    backwards, counts = backwards[pick], counts[pick]
    lengths = (backwards != begin).sum(axis=1)
    ids, raw, left, exact = [], [], [], []
    new = np.zeros(len(backwards), bool)
    new[:1] = True
    for j in range(1, highest + 1):
        new = new.copy()
        new[1:] |= backwards[1:, j - 1] != backwards[:-1, j - 1]
        firsts = np.flatnonzero(new)
        real = lengths[firsts] >= j
        ids.append(backwards[firsts[real], :j][:, ::-1])
        raw.append(np.add.reduceat(counts, firsts)[real])
        alone = np.where(lengths == j, counts, 0)
        exact.append(np.add.reduceat(alone, firsts)[real])
        if j == highest:
            left.append(raw[-1])
            continue
        longer = new.copy()
        longer[1:] |= backwards[1:, j] != backwards[:-1, j]
        left.append(np.add.reduceat(longer.astype(np.int64), firsts)[real])
    orders, contexts, picks = backoff.arrange(ids, [])
    out = []
    for j, (order, pick) in enumerate(zip(orders, picks), 1):
        inside = np.append(words, False)[order.ids[:, 0]]
        adjusted = np.where(inside, left[j - 1][pick], raw[j - 1][pick])
        least = prune[min(j, len(prune)) - 1] if prune else 0
        kept = raw[j - 1][pick] > least
        out.append(Counts(order, raw[j - 1][pick], adjusted, exact[j - 1][pick], kept))
    return out, contexts


def cut(
    grams: Int[np.ndarray, "_ _"], words: Bool[np.ndarray, "V"]
) -> Int[np.ndarray, "_ _"]:
    """Replaces the symbols before a begin-of-text symbol (not a word) by V."""
    begin = len(words)
    known = np.append(words, False)
    starts = ~known[grams[:, :-1]] & (grams[:, :-1] != begin)
    later = np.cumsum(starts[:, ::-1], axis=1)[:, ::-1] - starts
    out = grams.copy()
    out[:, :-1][later > 0] = begin
    return out


# ── The methods ─────────────────────────────────────────────────────────────────────


def kneser_ney(
    counts: list[Counts], fallback: bool = False
) -> tuple[list[Part], dict[str, Any]]:
    """Estimates modified Kneser-Ney (Chen and Goodman 1998, section 3), as KenLM.

    The discounts are those of all adjusted counts. KenLM takes for the last n-gram that
    it reads of each lower order, such as the last new word of the text, how often it
    occurs in place of its adjusted count, so that a discount may differ in the fifth
    digit; on WikiText-2 it is the word "gallinae", which occurs 3 times after 2 words.

    Args:
      fallback: whether an order whose discounts cannot be estimated gets 0.5, 1, 1.5.

    Raises:
      DataError: no n-gram has a count that the discounts need, or one is out of range.
    """
    parts = []
    found: dict[str, float] = {}
    for j, of in enumerate(counts, 1):
        steps = np.array([0.0, *discounts(of.adjusted, j, fallback)])
        found |= {f"discount_{j}_{k}": float(steps[k]) for k in (1, 2, 3)}
        value = np.where(of.kept, of.adjusted, 0)
        off = steps[np.minimum(value, 3)]
        total = np.maximum(of.by_context(of.adjusted), 1)
        given = of.by_context(of.adjusted - value + off)
        parts.append(((value - off) / total[of.order.rows], given / total))
    return parts, found


def discounts(
    counts: Int64[np.ndarray, "_"], order: int, fallback: bool
) -> tuple[float, ...]:
    """Returns D1, D2 and D3+ of an order (Chen and Goodman 1998, equation 17)."""
    t = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if (t[:3] > 0).all():
        y = t[0] / (t[0] + 2 * t[1])
        found = [k - (k + 1) * y * t[k] / t[k - 1] for k in (1, 2, 3)]
        if all(0 <= d <= k for k, d in enumerate(found, 1)):
            return tuple(found)
        what = f"discounts {', '.join(f'{d:.4g}' for d in found)} of {order}-grams"
    else:
        what = f"no {order}-gram of (adjusted) count {int(np.argmin(t[:3] > 0)) + 1}"
    if fallback:
        return 0.5, 1.0, 1.5
    raise DataError(
        "data.sources",
        what,
        "text from which Kneser-Ney's discounts can be estimated",
        "set model.discount_fallback=True, or choose another model.smoothing.",
    )


def witten_bell(
    counts: list[Counts], fallback: bool = False
) -> tuple[list[Part], dict[str, Any]]:
    """Witten and Bell 1991 (method C): gamma is the share of words that were new."""
    parts = []
    for of in counts:
        types = of.by_context(np.ones(len(of.raw)))
        total = np.maximum(of.by_context(of.raw) + types, 1)
        value = np.where(of.kept, of.raw, 0)
        given = types + of.by_context(of.raw - value)
        parts.append((value / total[of.order.rows], given / total))
    return parts, {}


# ── Probabilities ───────────────────────────────────────────────────────────────────

STUPID = 0.4  # Brants et al. 2007, section 4


def interpolate(counts: list[Counts], parts: list[Part], words: int) -> list[Part]:
    """Returns p of each n-gram and gamma of each context, for orders 1, 2, ..."""
    out: list[Part] = []
    lower = np.array([1.0 / words])
    for of, (own, gamma) in zip(counts, parts):
        lower = own + gamma[of.order.rows] * lower[of.order.lower]
        out.append((lower, gamma))
    return out


def back_off(counts: list[Counts], contexts: list[Contexts], words: int) -> list[Part]:
    """Computes stupid back-off with scores divided by their sum over all words.

    A score is c(h w) / c(h) of an n-gram that was seen, else 0.4 times that of the
    order below; a word that was never seen has 0.4 / |V|. The order of words after a
    history is that of the published scores, and perplexities are well defined.
    """
    out: list[Part] = []
    scores, total = np.array([1.0 / words]), np.ones(1)
    for of, level in zip(counts, contexts):
        share = of.raw / np.maximum(of.by_context(of.raw), 1)[of.order.rows]
        below = scores[of.order.lower]
        given = total[level.parents]
        rest = given - of.by_context(np.where(of.kept, below, 0))
        total = of.by_context(np.where(of.kept, share, 0)) + STUPID * rest
        scores = np.where(of.kept, share, STUPID * below)
        out.append((scores / total[of.order.rows], STUPID * given / total))
    return out


def estimate(
    method: str,
    grams: Int[np.ndarray, "_ _"],
    frequencies: Int64[np.ndarray, "_"],
    words: Bool[np.ndarray, "V"],
    *,
    prune: tuple[int, ...] = (),
    fallback: bool = False,
) -> tuple[Tree, dict[str, Any]]:
    """Estimates the back-off table of a model from counts of its highest order.

    Args:
      method: "kneser_ney", "witten_bell" or "stupid_backoff".
      words: which symbols are words; others are never predicted.

    Returns:
      The table (`lm.ops.backoff`), and measurements: the loss on the counted text in
      nats, the n-grams of each order, Kneser-Ney's discounts.
    """
    counts, contexts = count(grams, frequencies, words, prune)
    size, found = int(words.sum()), {}
    if method == "stupid_backoff":
        parts = back_off(counts, contexts, size)
    else:
        methods: dict[str, Any] = {
            "kneser_ney": kneser_ney,
            "witten_bell": witten_bell,
        }
        estimated, found = methods[method](counts, fallback)
        parts = interpolate(counts, estimated, size)
    tree = table(counts, contexts, parts, words)
    found |= {f"ngrams_{j}": int(of.kept.sum()) for j, of in enumerate(counts, 1)}
    loss = 0.0
    for j, (of, (p, _)) in enumerate(zip(counts, parts), 1):
        ends = of.raw if j == len(counts) else of.exact
        loss -= float(ends @ np.log(p))
    return tree, {"loss": loss / int(frequencies.sum()), **found}


def table(
    counts: list[Counts],
    contexts: list[Contexts],
    parts: list[Part],
    words: Bool[np.ndarray, "V"],
) -> Tree:
    """Makes the back-off table of the n-grams that are kept and of every word."""
    first, (p, gamma) = counts[0], parts[0]
    ids = np.flatnonzero(words)
    unigrams = np.full(len(words), gamma[0] / len(ids))
    unigrams[first.order.ids[:, 0]] = p
    if all(of.kept.all() for of in counts):
        absent = np.full(len(words), -99.0, np.float32)
        absent[ids] = log10(unigrams[ids])
        orders = [of.order for of in counts]
        values = [log10(p) for p, _ in parts[1:]]
        # A context that nothing follows is there for longer ones, without a weight.
        weights = [
            np.where(np.diff(order.starts) > 0, log10(gamma), 0.0)
            for order, (_, gamma) in zip(orders[1:], parts[1:])
        ]
        return backoff.assemble(absent, orders, contexts, values, weights)
    grams = [(ids[:, None], log10(unigrams[ids]))]
    backoffs = []
    for of, (p, gamma) in zip(counts[1:], parts[1:]):
        order = of.order
        grams.append((order.ids[of.kept], log10(p[of.kept])))
        full = np.diff(order.starts) > 0
        histories = order.ids[order.starts[:-1][full], :-1]
        backoffs.append((histories, log10(gamma[full])))
    return backoff.make(len(words), grams, backoffs)


def log10(values: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_"]:
    """Returns logarithms to base 10; -99 for 0, as in ARPA files."""
    return np.log10(np.maximum(values, 1e-99))
