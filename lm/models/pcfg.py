"""A probabilistic context-free grammar, counted from trees and refined from sentences.

The first pass of a fit (`job = "fit"`) counts the rules of the trees (Charniak 1996).
Each further pass computes the expected counts of the rules over all trees of the
sentences, and makes their shares the probabilities (inside-outside: Baker 1979; Lari
and Young 1990); the likelihood of the sentences never falls. A grammar has its rules
from the trees alone.

A word that was seen in no tree is drawn as its class, a number of the objective, from
the classes of the words that were seen at most `rare` times. As a language model the
grammar is mixed with a unigram model of words, so that each sentence has a probability.

    symbols (S,)                       the token of each symbol, such as "(NP"
    start (S,)                         log-probability as the root
    rules/{parent,left,right,weights}  (R,) binary rules, sorted by parent
    lexicon/{symbol,entry,weights}     (L,) a symbol above a word, or above class c as
                                       entry V + c
    lexicon/table                      (entries, M) the rules of each entry, -1 for none
    unigrams                           (entries,) log-probabilities
    length                             log-probabilities of going on, and of the end
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.errors import DataError
from lm.models.base import Compute, Head
from lm.ops import cky

BOUNDS = {
    "vocab_size": "[1, 1048576]",
    "vocab_multiple": "[1, 1048576]",
    "classes": "[1, 4096]",
    "rare": "[0, 1000000]",
    "longest": "[1, 1000000]",
    "backup": "[0, 1)",
}
CHANGEABLE = ("backup",)

Batch = dict[str, Any]

CHARTS = 1 << 26  # entries of the charts that are computed at a time
STEP = 8  # lengths are rounded up to a multiple of it, so that few programs are made


class Model(nn.Module):
    """A grammar in Chomsky normal form.

    Attributes:
      vocab_size: None is the tokenizer's, whose tokens are words, "(LABEL" and ")".
      vocab_multiple: the size is rounded up to a multiple of this number.
      classes: the number of classes of words that the objective tells apart.
      rare: the most that a word may be seen to count for its class.
      longest: sentences with more words are left out of inside-outside.
      backup: the share of the unigram model in the probability of a sentence.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    classes: int = 64
    rare: int = 1
    longest: int = 40
    backup: float = 0.001
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"parse", "fit"})
    reads: ClassVar[frozenset[str]] = frozenset({"classes"})
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["host"]] = "host"

    def touch(self) -> None:
        """Makes nothing: all parameters come from `improve`."""

    def flops(self, batch: Batch) -> float | None:
        return None

    def small(self) -> dict[str, Any]:
        return {}

    def exact(self, length: int) -> dict[str, Any]:
        return {}

    @property
    def words(self) -> int:
        """Returns the number of tokens, V; entries of classes follow them."""
        assert self.vocab_size is not None  # filled in by the run
        return self.vocab_size

    # ── Fitted ──────────────────────────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Finds the tokens that are brackets; the first pass counts the rules."""
        kinds = np.zeros(self.words, np.int8)
        for token in range(corpus.codec.vocab_size):
            text = corpus.codec.token(token)
            kinds[token] = 1 if text[:1] == "(" else 2 if text == ")" else 0
        return {"kinds": kinds}, {"passes": np.int32(0)}

    def statistics(self, params: PyTree, batch: Batch) -> PyTree:
        """Counts the rules of the trees of a batch, or expects them from its sentences.

        Returns:
          Of the first pass `start`, `rules` and `lexicon`, each a table of distinct
          rows of tokens (a word has its class beside it) and their counts.
        """
        if "rules" in params:
            return self._expected(params, batch)
        rows: dict[str, list] = {"start": [], "rules": [], "lexicon": []}
        kinds, counted = params["kinds"], batch["weights"].any(axis=1)
        for row in np.flatnonzero(counted):
            tree, classes = (np.asarray(batch[n][row]) for n in ("tree", "classes"))
            read_tree(tree, classes, kinds, rows)
        widths = {"start": 1, "rules": 3, "lexicon": 3}
        return {
            name: _distinct(np.array(found, np.int64).reshape(-1, widths[name]))
            for name, found in rows.items()
        }

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        if "nats" in one:
            return jax.tree.map(np.add, one, other)
        merged = {}
        for name, (rows, counts) in one.items():
            more, others = other[name]
            both = np.concatenate([rows, more]), np.concatenate([counts, others])
            merged[name] = _distinct(*both)
        return merged

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Makes the shares of the counts the probabilities of the rules.

        Raises:
          DataError: the data have no trees.
        """
        memory = {"passes": memory["passes"] + 1}
        if "nats" in statistics:
            return *self._refined(params, statistics, memory), _measured(statistics)
        (roots, root_counts), (rules, rule_counts) = (
            statistics[name] for name in ("start", "rules")
        )
        lexical, lexical_counts = statistics["lexicon"]
        if not len(lexical):
            raise DataError("data.sources", "no trees", "trees to count rules of")
        symbols = np.unique(np.concatenate([rules.ravel(), lexical[:, 0], roots[:, 0]]))
        number = functools.partial(np.searchsorted, symbols)
        parent, left, right = (number(rules[:, i]) for i in range(3))
        entries, by_class = self._entries(lexical, lexical_counts)
        symbol = number(entries[:, 0])
        totals = np.zeros(len(symbols))
        np.add.at(totals, parent, rule_counts)
        np.add.at(totals, number(lexical[:, 0]), lexical_counts)
        first = np.zeros(len(symbols))
        first[number(roots[:, 0])] = root_counts
        sentences, words = int(root_counts.sum()), int(lexical_counts.sum())
        size = self.words + self.classes + 1
        unigrams = np.bincount(entries[:, 1], by_class, size)
        grammar = {
            "symbols": symbols.astype(np.int32),
            "start": _logs(first / sentences),
            "rules": {
                "parent": parent.astype(np.int32),
                "left": left.astype(np.int32),
                "right": right.astype(np.int32),
                "weights": _logs(rule_counts / totals[parent]),
            },
            "lexicon": {
                "symbol": symbol.astype(np.int32),
                "entry": entries[:, 1].astype(np.int32),
                "weights": _logs(by_class / totals[symbol]),
                "table": cky.table_of(entries[:, 1], size),
            },
            "unigrams": _logs((unigrams + 1) / (unigrams + 1).sum()),
            "length": _logs(np.array([words, sentences]) / (words + sentences)),
        }
        measured = {
            "sentences": sentences,
            "symbols": len(symbols),
            "binary_rules": len(rules),
            "lexical_rules": int((entries[:, 1] < self.words).sum()),
        }
        return {"kinds": params["kinds"]} | grammar, memory, measured

    def _entries(
        self, lexical: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns distinct (symbol, entry) with their counts; words, then classes.

        A symbol gives to each of its words that is rare the same count for its class,
        and for the last entry, which is any class.
        """
        seen = np.bincount(lexical[:, 1], counts, self.words)
        rare = seen[lexical[:, 1]] <= self.rare
        symbol, word, kind = lexical.T
        parts = [
            np.stack([symbol, word], 1),
            np.stack([symbol, self.words + kind], 1)[rare],
            np.stack([symbol, np.full(len(symbol), self.words + self.classes)], 1)[
                rare
            ],
        ]
        several = np.concatenate([counts, counts[rare], counts[rare]])
        return _distinct(np.concatenate(parts), several)

    def _expected(self, params: PyTree, batch: Batch) -> PyTree:
        lengths = np.asarray(batch["segment_ids"] != 0).sum(axis=1)
        counts = np.asarray(batch["weights"]).any(axis=1) & (lengths <= self.longest)
        lengths = np.where(counts, lengths, 0)
        longest = min(
            -(-int(lengths.max()) // STEP) * STEP or STEP, batch["inputs"].shape[1]
        )
        short = {name: batch[name][:, :longest] for name in ("inputs", "classes")}
        found = _expected(self.words, params, short, lengths)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found)

    def _refined(
        self, params: PyTree, statistics: PyTree, memory: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Returns the parameters from expected counts.

        A symbol that is expected nowhere keeps its probabilities.
        """
        counts, rules, lexicon = (
            statistics["counts"],
            params["rules"],
            params["lexicon"],
        )
        words = lexicon["entry"] < self.words
        totals = np.zeros(len(params["symbols"]))
        np.add.at(totals, rules["parent"], counts["rules"])
        np.add.at(totals, lexicon["symbol"], counts["lexicon"])
        some = np.where(totals > 0, totals, 1)

        def new(counts: np.ndarray, parent: np.ndarray, old: np.ndarray) -> np.ndarray:
            found = _logs(counts / some[parent])
            return np.where(totals[parent] > 0, found, old)

        lexical = new(counts["lexicon"], lexicon["symbol"], lexicon["weights"])
        made = {
            "start": _logs(counts["start"] / max(counts["start"].sum(), 1e-30)),
            "rules": rules
            | {"weights": new(counts["rules"], rules["parent"], rules["weights"])},
            "lexicon": lexicon
            | {"weights": np.where(words, lexical, lexicon["weights"])},
        }
        return params | made, memory

    # ── Asked for trees and probabilities ───────────────────────────────────────────

    def log_inside(self, batch: Batch) -> Float[Array, "B"]:
        """Computes the log-probability of each sentence; -inf without a tree."""
        return self._ask(cky.inside, batch)

    def has_tree(self, batch: Batch) -> Bool[Array, "B"]:
        """Tells of each sentence whether the grammar has it."""
        return self._ask(cky.recognize, batch)

    def _ask(self, chart: Callable[..., PyTree], batch: Batch) -> PyTree:
        """Returns what a chart says of each sentence, of some sentences at a time."""
        params = self.variables["params"]
        rules, start = cky.Rules(**params["rules"]), params["start"]
        words, lengths = _scores(self.words, params, batch)
        S, B, T = words.shape
        rows = min(max(CHARTS // (S * T * T), 1), B)
        more = -B % rows
        words = jnp.pad(jnp.swapaxes(words, 0, 1), ((0, more), (0, 0), (0, 0)))
        groups = words.reshape(-1, rows, S, T), jnp.pad(lengths, (0, more))

        def some(part: tuple[jax.Array, jax.Array]) -> PyTree:
            return chart(rules, start, jnp.swapaxes(part[0], 0, 1), part[1])

        found = jax.lax.map(some, (groups[0], groups[1].reshape(-1, rows)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:B], found)

    def log_prob(
        self, batch: Batch, inside: Float[Array, "B"] | None = None
    ) -> Float[Array, "B"]:
        """Computes the log-probability of each sentence, the unigram model mixed in.

        It is -inf for a sentence without a tree where `backup` is 0.

        Args:
          inside: what `log_inside` gives, if it is known already.
        """
        inside = self.log_inside(batch) if inside is None else inside
        if self.backup == 0:
            return inside
        params = self.variables["params"]
        real = batch["segment_ids"] != 0
        entries = _entry_of(self.words, params, batch["inputs"], batch["classes"])
        each = params["unigrams"][entries] + params["length"][0]
        unigrams = jnp.sum(jnp.where(real, each, 0.0), axis=1) + params["length"][1]
        shares = np.log1p(-self.backup), np.log(self.backup)
        return jnp.logaddexp(inside + shares[0], unigrams + shares[1])

    def parse(self, batch: Batch) -> cky.Parse:
        """Finds the best tree of each sentence; its symbols are tokens."""
        found = self._ask(cky.viterbi, batch)
        named = self.variables["params"]["symbols"][found.nodes[..., 2]]
        return found._replace(nodes=found.nodes.at[..., 2].set(named))


def read_tree(
    tokens: Int[np.ndarray, "L"],
    classes: Int[np.ndarray, "T"],
    kinds: Int[np.ndarray, "V"],
    rows: dict[str, list],
) -> None:
    """Adds the rules of a tree, given as tokens, to the lists of `rows`.

    Args:
      kinds: 1 for the tokens that open a bracket, 2 for that which closes one.
    """
    above: list[list[int]] = []  # of each open bracket, its symbol and its children
    word = 0
    for token in tokens.tolist():
        if kinds[token] == 1:
            above.append([token])
        elif kinds[token] == 0:
            rows["lexicon"].append((above[-1][0], token, int(classes[word])))
            word += 1
        else:
            node = above.pop()
            if len(node) == 3:
                rows["rules"].append(node)
            if not above:
                rows["start"].append((node[0],))
                return  # the rest is padding
            above[-1].append(node[0])


def _distinct(
    rows: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct rows, sorted, and the sums of their counts."""
    found, where = np.unique(rows, axis=0, return_inverse=True)
    return found, np.bincount(where.ravel(), counts, len(found)).astype(np.float64)


def _logs(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(shares).astype(np.float32)


def _measured(statistics: PyTree) -> dict[str, Any]:
    return {
        "loss": statistics["nats"] / max(float(statistics["words"]), 1.0),
        "unparsed": statistics["unparsed"],
    }


def _entry_of(
    words: int, params: PyTree, inputs: Int[Array, "B T"], classes: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Finds the entry of each word: itself, its class if it is new, or any class."""
    known = params["lexicon"]["table"][:, 0] >= 0
    last = len(known) - 1
    kind = jnp.where(known[words + classes], words + classes, last)
    return jnp.where(known[inputs], inputs, kind)


def _scores(
    words: int, params: PyTree, batch: Batch
) -> tuple[Float[Array, "S B T"], Int[Array, "B"]]:
    """Returns the scores of the symbols above each word, and the lengths."""
    lexicon, inputs = params["lexicon"], batch["inputs"]
    entries = _entry_of(words, params, inputs, batch["classes"])
    rules = lexicon["table"][entries]  # (B, T, M)
    S, (B, T, M) = len(params["symbols"]), rules.shape
    symbol = jnp.where(rules >= 0, lexicon["symbol"][rules], S)
    where = jnp.broadcast_to(jnp.arange(B * T).reshape(B, T, 1), (B, T, M))
    none = jnp.full((S, B * T), -jnp.inf, jnp.float32)
    scores = none.at[symbol, where].set(lexicon["weights"][rules], mode="drop")
    return scores.reshape(S, B, T), jnp.sum(batch["segment_ids"] != 0, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _expected(words: int, params: PyTree, batch: Batch, lengths: jax.Array) -> PyTree:
    """Returns the expected counts of the rules, by the gradient of log inside."""
    real = jnp.arange(batch["inputs"].shape[1]) < lengths[:, None]
    batch = {**batch, "segment_ids": real.astype(jnp.int32)}
    rules, lexicon = params["rules"], params["lexicon"]
    weights = {
        "start": params["start"],
        "rules": rules["weights"],
        "lexicon": lexicon["weights"],
    }

    def total(weights: PyTree) -> tuple[jax.Array, jax.Array]:
        own = params | {
            "start": weights["start"],
            "rules": rules | {"weights": weights["rules"]},
            "lexicon": lexicon | {"weights": weights["lexicon"]},
        }
        grammar = cky.Rules(**own["rules"]), own["start"]
        found = cky.inside(*grammar, *_scores(words, own, batch))
        parsed = jnp.isfinite(found)
        return jnp.sum(jnp.where(parsed, found, 0.0)), parsed

    (found, parsed), counts = jax.value_and_grad(total, has_aux=True)(weights)
    return {
        "counts": counts,
        "nats": -found,
        "words": jnp.sum(jnp.where(parsed, lengths, 0)),
        "unparsed": jnp.sum(~parsed & (lengths > 0)),
    }
