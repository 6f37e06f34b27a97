"""Back-off tables: log10 probabilities of n-grams, kept by their contexts.

    log p(w | h) = log10 of the n-gram h w, where the table has it
                 = backoff(h) + log p(w | h without its first symbol) otherwise

(Katz 1987; the content of an ARPA file. An interpolated model is one, too: its n-grams
hold the interpolated probability.) Contexts are a trie that is read backwards, as in
Heafield 2011, section 3.2: a row of level m is a context of m symbols, its parent is
the context without its first symbol, so that one walk finds all contexts of a token.
The n-grams of order j are sorted by the row of their context in level j - 1, then by
their last symbol. Shapes: N n-grams of one order, C contexts of one length, R tokens, V
vocabulary, M the longest context.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64

from lm.ops import ngrams

LN10 = float(np.log(10.0))
Tree = dict[str, Any]


class Order(NamedTuple):
    """The n-grams of one order j, sorted by context and last symbol.

    Attributes:
      ids: (N, j) their symbols.
      rows: (N,) the row of the context in level j - 1.
      starts: (C + 1,) where the n-grams of each context begin.
      lower: (N,) the n-gram of order j - 1 without the first symbol, or -1.
    """

    ids: Int[np.ndarray, "_ _"]
    rows: Int64[np.ndarray, "_"]
    starts: Int64[np.ndarray, "_"]
    lower: Int64[np.ndarray, "_"]


class Contexts(NamedTuple):
    """The contexts of one length m: level m of the trie.

    Attributes:
      parents: (C,) the row of the context without its first symbol, in level m - 1.
      symbols: (C,) that first symbol; contexts are sorted by (parents, symbols).
    """

    parents: Int64[np.ndarray, "_"]
    symbols: Int64[np.ndarray, "_"]


# ── On the host ─────────────────────────────────────────────────────────────────────


def _key(rows: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    return (rows.astype(np.int64) << 32) | symbols.astype(np.int64)


def _locate(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Finds each key that is asked for in ascending keys; -1 where it is absent."""
    if not len(keys):
        return np.full(len(asked), -1, np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, at, -1)


def arrange(
    grams: list[Int[np.ndarray, "_ _"]], more: list[Int[np.ndarray, "_ _"]]
) -> tuple[list[Order], list[Contexts], list[np.ndarray]]:
    """Sorts distinct n-grams by their contexts.

    Args:
      grams: those of order 1, 2, ...; not sorted.
      more: further contexts, of length 1, 2, ..., perhaps fewer lengths.

    Returns:
      The orders; the contexts of length 0 (one) to len(grams) - 1; and for each order
      which of the given n-grams each sorted one is.
    """
    histories = [ids[:, :-1].astype(np.int64) for ids in grams]
    histories += [ids.astype(np.int64) for ids in more]
    found = [np.zeros(len(ids), np.int64) for ids in histories]
    contexts = [Contexts(np.zeros(1, np.int64), np.zeros(1, np.int64))]
    for length in range(1, len(grams)):
        longer = [i for i, ids in enumerate(histories) if ids.shape[1] >= length]
        keys = [_key(found[i], histories[i][:, -length]) for i in longer]
        unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        borders = np.cumsum([len(key) for key in keys])[:-1]
        for i, rows in zip(longer, np.split(inverse.reshape(-1), borders)):
            found[i] = rows
        contexts.append(Contexts(unique >> 32, unique & 0xFFFFFFFF))
    orders: list[Order] = []
    chosen, below = [], np.zeros(0, np.int64)
    for j, ids in enumerate(grams):
        own = _key(found[j], ids[:, -1])
        pick = np.argsort(own, kind="stable")
        own = own[pick]
        parents = own >> 32
        starts = np.searchsorted(parents, np.arange(len(contexts[j].symbols) + 1))
        lower = _locate(below, _key(contexts[j].parents[parents], ids[pick, -1]))
        orders.append(Order(ids[pick], parents, starts, lower))
        chosen.append(pick)
        below = own
    return orders, contexts, chosen


def make(
    size: int,
    grams: list[tuple[Int[np.ndarray, "_ _"], Float[np.ndarray, "_"]]],
    backoffs: list[tuple[Int[np.ndarray, "_ _"], Float[np.ndarray, "_"]]],
) -> Tree:
    """Makes the parameters of a model out of n-grams and weights of contexts.

    Args:
      size: V.
      grams: of order 1, 2, ...: symbols and log10 probabilities.
      backoffs: of length 1, 2, ...: symbols and log10 weights; other contexts have 0.

    Returns:
      unigrams (V,), -99 if absent; contexts/<m>/{starts,words,backoff,best} and
      grams/<j>/{starts,words,log10} for the orders above 1. `best` is the most probable
      word after a context, the first of equal ones.
    """
    unigrams = np.full(size, -99.0, np.float32)
    unigrams[grams[0][0][:, 0]] = grams[0][1]
    kept = [(ids[value != 0], value[value != 0]) for ids, value in backoffs]
    orders, levels, picks = arrange([g for g, _ in grams], [ids for ids, _ in kept])
    weights = []
    for level, (ids, values) in zip(levels[1:], kept):
        weights.append(np.zeros(len(level.symbols)))
        weights[-1][rows_of(levels, ids)] = values
    values = [given[pick] for (_, given), pick in zip(grams[1:], picks[1:])]
    return assemble(unigrams, orders, levels, values, weights)


def assemble(
    unigrams: Float[np.ndarray, "V"],
    orders: list[Order],
    levels: list[Contexts],
    values: list[Float[np.ndarray, "_"]],
    weights: list[Float[np.ndarray, "_"]],
) -> Tree:
    """Makes the parameters, see `make`, of n-grams that are arranged.

    Args:
      orders, levels: of `arrange`.
      values: log10 of each n-gram of order 2, 3, ...
      weights: log10 of the weight of each context of length 1, 2, ...
    """
    found: Tree = {"unigrams": unigrams, "contexts": {}, "grams": {}}
    for m, (level, weight) in enumerate(zip(levels[1:], weights), 1):
        above = np.arange(len(levels[m - 1].symbols) + 1)
        found["contexts"][str(m)] = {
            "starts": np.searchsorted(level.parents, above).astype(np.int32),
            "words": level.symbols.astype(np.int32),
            "backoff": weight.astype(np.float32),
        }
    for j, (order, log10) in enumerate(zip(orders[1:], values), 2):
        found["grams"][str(j)] = {
            "starts": order.starts.astype(np.int32),
            "words": order.ids[:, -1].astype(np.int32),
            "log10": log10.astype(np.float32),
        }
    _add_best(found, levels)
    return found


def _add_best(tree: Tree, levels: list[Contexts]) -> None:
    """Adds to each context its most probable word.

    It is the best of the context's own n-grams or the best word of the shorter context,
    whichever is more probable. Without interpolation that word may have an own n-gram
    with less than its back-off probability; then all probabilities are computed.
    """
    words = np.argmax(tree["unigrams"], keepdims=True).astype(np.int32)
    values = tree["unigrams"][words]
    for m, level in enumerate(levels[1:], 1):
        grams, context = tree["grams"][str(m + 1)], tree["contexts"][str(m)]
        log10, symbols, starts = grams["log10"], grams["words"], grams["starts"]
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        own = np.full(len(starts) - 1, -np.inf, np.float32)
        first = np.full(len(own), len(tree["unigrams"]), np.int32)
        np.maximum.at(own, rows, log10)
        top = log10 == own[rows]
        np.minimum.at(first, rows[top], symbols[top])
        lower, below = values[level.parents], words[level.parents]
        lower = lower + context["backoff"]
        wins = (lower > own) | ((lower == own) & (below < first))
        seen = _locate(_key(rows, symbols), _key(np.arange(len(own)), below)) >= 0
        values, words = np.where(wins, lower, own), np.where(wins, below, first)
        for row in np.flatnonzero(wins & seen & (lower > own)):
            every = _probabilities(tree, levels, m, int(row))
            words[row] = np.argmax(every)
            values[row] = every[words[row]]
        context["best"] = words.astype(np.int32)


def _probabilities(
    tree: Tree, levels: list[Contexts], m: int, row: int
) -> Float[np.ndarray, "V"]:
    """Returns the log10 probability of every word after a context of level m."""
    if m == 0:
        return tree["unigrams"].copy()
    below = _probabilities(tree, levels, m - 1, int(levels[m].parents[row]))
    grams = tree["grams"][str(m + 1)]
    own = slice(*grams["starts"][row : row + 2])
    below += tree["contexts"][str(m)]["backoff"][row]
    below[grams["words"][own]] = grams["log10"][own]
    return below


def rows_of(
    levels: list[Contexts], ids: Int[np.ndarray, "_ _"]
) -> Int64[np.ndarray, "_"]:
    """Finds contexts of m symbols in level m; -1 where one is absent."""
    rows = np.zeros(len(ids), np.int64)
    for length in range(1, ids.shape[1] + 1):
        level = levels[length]
        asked = _key(rows, ids[:, -length])
        found = _locate(_key(level.parents, level.symbols), asked)
        rows = np.where(rows >= 0, found, -1)
    return rows


def unmake(
    tree: Tree,
) -> tuple[
    list[tuple[Int[np.ndarray, "_ _"], Float[np.ndarray, "_"]]],
    list[tuple[Int[np.ndarray, "_ _"], Float[np.ndarray, "_"]]],
]:
    """Inverts `make`; n-grams are sorted by context (read backwards), then last symbol.

    The unigrams are all V symbols, absent ones with -99; all contexts are included.
    """
    size = len(tree["unigrams"])
    grams = [(np.arange(size)[:, None], np.asarray(tree["unigrams"]))]
    backoffs, ids = [], np.zeros((1, 0), np.int64)
    for m in range(1, len(tree["contexts"]) + 1):
        level = tree["contexts"][str(m)]
        parents = np.repeat(np.arange(len(ids)), np.diff(level["starts"]))
        ids = np.concatenate([np.asarray(level["words"])[:, None], ids[parents]], 1)
        backoffs.append((ids, np.asarray(level["backoff"])))
        below = tree["grams"][str(m + 1)]
        rows = np.repeat(np.arange(len(ids)), np.diff(below["starts"]))
        words = np.asarray(below["words"])[:, None]
        grams.append((np.concatenate([ids[rows], words], 1), below["log10"]))
    return grams, backoffs


def contexts_of(tree: Tree) -> list[Contexts]:
    """Returns the levels of the trie of contexts in the form of `arrange`."""
    levels = [Contexts(np.zeros(1, np.int64), np.zeros(1, np.int64))]
    for m in range(1, len(tree["contexts"]) + 1):
        level = tree["contexts"][str(m)]
        sizes = np.diff(level["starts"])
        symbols = np.asarray(level["words"], np.int64)
        levels.append(Contexts(np.repeat(np.arange(len(sizes)), sizes), symbols))
    return levels


# ── On the device ───────────────────────────────────────────────────────────────────


def find(tree: Tree, history: Int[Array, "*any M"]) -> Int[Array, "*any C"]:
    """Finds the rows of the contexts of the last 1, 2, ..., M symbols; -1 if absent.

    Without a context (M = 0) the result has one column of -1.
    """
    rows, found = jnp.zeros(history.shape[:-1], jnp.int32), []
    for m in range(1, history.shape[-1] + 1):
        level = tree["contexts"][str(m)]
        if len(level["words"]):
            rows = ngrams.descend(level, rows, history[..., -m])
        else:
            rows = jnp.full_like(rows, -1)
        found.append(rows)
    return jnp.stack(found or [rows - 1], axis=-1)


def _weight(tree: Tree, m: int, rows: Int[Array, "*any"]) -> Float[Array, "*any"]:
    backoff = jnp.asarray(tree["contexts"][str(m)]["backoff"])
    if not len(backoff):
        return jnp.zeros(rows.shape, jnp.float32)
    return jnp.where(rows >= 0, backoff.at[jnp.maximum(rows, 0)].get(mode="clip"), 0)


def log_prob(
    tree: Tree, rows: Int[Array, "*any M"], words: Int[Array, "*any"]
) -> Float[Array, "*any"]:
    """Returns the log-probability of a word in nats, given the contexts of `find`."""
    found = jnp.asarray(tree["unigrams"])[words]
    for m in range(1, len(tree["contexts"]) + 1):
        row, level = rows[..., m - 1], tree["grams"][str(m + 1)]
        if not len(level["words"]):  # All of them are pruned.
            found = found + _weight(tree, m, row)
            continue
        child = ngrams.descend(level, row, words)
        own = jnp.asarray(level["log10"]).at[jnp.maximum(child, 0)].get(mode="clip")
        found = jnp.where(child >= 0, own, found + _weight(tree, m, row))
    return found * LN10


def best(tree: Tree, rows: Int[Array, "*any M"]) -> Int[Array, "*any"]:
    """Returns the most probable word after the contexts of `find`."""
    found = jnp.argmax(jnp.asarray(tree["unigrams"])).astype(jnp.int32)
    found = jnp.broadcast_to(found, rows.shape[:-1])
    for m in range(1, len(tree["contexts"]) + 1):
        row, words = rows[..., m - 1], jnp.asarray(tree["contexts"][str(m)]["best"])
        if len(words):
            own = words.at[jnp.maximum(row, 0)].get(mode="clip")
            found = jnp.where(row >= 0, own, found)
    return found


def log_probs(tree: Tree, rows: Int[Array, "R M"], words: Array) -> Float[Array, "R V"]:
    """Returns the log-probabilities of all words in nats.

    Args:
      words: (V,) which ids are words; the others get -inf.
    """
    first = jnp.where(words, jnp.asarray(tree["unigrams"]), -jnp.inf)
    out = jnp.broadcast_to(first, (len(rows), len(first)))
    for m in range(1, len(tree["contexts"]) + 1):
        row, level = rows[:, m - 1], tree["grams"][str(m + 1)]
        out = out + _weight(tree, m, row)[:, None]
        if not len(level["words"]):
            continue
        value: Callable = lambda _, child, log10=level["log10"]: log10[child]  # noqa: E731
        out = ngrams.scatter(level, row, out, value)
    return out * LN10
