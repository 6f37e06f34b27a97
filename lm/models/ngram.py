"""n-gram models: predict a token from the last n - 1 by smoothed counts.

A text is preceded by n - 1 begin symbols, which are never predicted; a bos token of the
objective is a token like any other, except that it is never predicted either. V is the
tokenizer's vocabulary without bos and padding; it includes the unknown token and the
end of a text. The model is fitted in one pass over the data (`job = "fit"`) without
gradients. `smoothing` is the estimator of the probabilities:

    add_k           p(w | h) = (c(h w) + k) / (c(h) + k |V|): additive smoothing after
                    Lidstone and Jeffreys (Chen and Goodman 1998, section 2.1)
    kneser_ney      interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3),
                    as KenLM estimates it (Heafield et al. 2013)
    witten_bell     interpolated, method C of Witten and Bell 1991
    stupid_backoff  the scores of Brants et al. 2007, divided by their sum

Except with add_k, n-grams do not include the begin symbols: the first n-grams of a text
are shorter. The fitting pass makes all parameters, `touch` makes none:

    vocabulary                (V,) which ids are words
    trie/<j>/{starts,words}   add_k: the contexts (j < n) and the n-grams (j = n), see
                              lm.ops.ngrams; the begin symbol is word V
    counts, totals            add_k: c(h w) of each n-gram, c(h) of each context
    unigrams, contexts, grams all others: the table of lm.ops.backoff
"""

import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import ConfigError, DataError
from lm.models.base import Compute, Head, Rows
from lm.ops import backoff, ngrams, smoothing
from lm.ops.ngrams import Table

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "order": "[1, 6]",
    "k": "[1e-9, 1e9]",
    "prune": "[0, 2147483647]",
    "memory": "[0.001, 16777216]",
}
CHANGEABLE = ("k", "memory")

Batch = dict[str, Any]
Cache = dict[str, jax.Array]


class Model(nn.Module):
    """An n-gram model with smoothed counts.

    Attributes:
      vocab_size: None is the tokenizer's.
      vocab_multiple: the size is rounded up to a multiple of this number.
      order: n, the tokens of an n-gram: 1 is a unigram model.
      k: the number that add_k adds to each count. It is not a parameter: the counts of
        a run can be evaluated with another k.
      smoothing: the estimator; see the top of lm/models/ngram.py.
      prune: thresholds for orders 1, 2, ...: n-grams with this count or less are left
        out; the last one holds for higher orders. The first is 0 and none decreases.
      discount_fallback: whether Kneser-Ney uses the discounts 0.5, 1 and 1.5 for an
        order whose discounts cannot be estimated; otherwise it raises a DataError.
      memory: MiB of counts that are merged in memory; more are merged in temporary
        files (in $TMPDIR). The counts are the same to the bit. Estimating from them
        takes memory in proportion to the distinct n-grams.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    order: int = 3
    k: float = 1.0
    smoothing: Literal["add_k", "kneser_ney", "witten_bell", "stupid_backoff"] = "add_k"
    prune: tuple[int, ...] = ()
    discount_fallback: bool = False
    memory: float = 1024.0
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["host"]] = "host"

    @property
    def can(self) -> frozenset[str]:
        every = frozenset({"logits", "causal", "extend", "fit"})
        return every if self.smoothing == "add_k" else every | {"score"}

    @property
    def begin(self) -> int:
        """Returns the symbol before a text, V."""
        assert self.vocab_size is not None  # filled in by the run
        return self.vocab_size

    def touch(self) -> None:
        """Makes nothing: all parameters come from `improve`."""

    def flops(self, batch: Batch) -> float | None:
        return None

    def small(self) -> dict[str, Any]:
        return {}

    def exact(self, length: int) -> dict[str, Any]:
        return {}

    # ── Fitted by a pass ────────────────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Makes the mask of the vocabulary; the first pass adds the counts.

        Raises:
          ConfigError: `prune` decreases, does not begin with 0, or is too long.
        """
        self._check_prune()
        codec = corpus.codec
        words = np.arange(self.begin) < codec.vocab_size
        words[[id for id in (codec.pad_id, codec.bos_id) if id is not None]] = False
        return {"vocabulary": words}, {}

    def _check_prune(self) -> None:
        rises = all(a <= b for a, b in zip((0, *self.prune), self.prune))
        if not rises or self.prune[:1] not in ((), (0,)):
            raise ConfigError(
                "model.prune",
                f"{self.prune}",
                "numbers that begin with 0, since no word is left out, and never fall",
            )
        if len(self.prune) > self.order or (self.prune and self.smoothing == "add_k"):
            raise ConfigError(
                "model.prune",
                f"{len(self.prune)} numbers with smoothing {self.smoothing!r}",
                f"none with add_k, else at most model.order={self.order}",
            )

    def statistics(self, params: PyTree, batch: Batch) -> Table:
        """Counts the n-grams of a batch that end in a target of weight above 0."""
        inputs, positions = batch["inputs"], batch["positions"]
        before = np.full((len(inputs), self.order - 1), self.begin, np.int32)
        history = ngrams.contexts(inputs, positions, before, self.begin, np)
        found = np.concatenate([history, batch["targets"][..., None]], axis=-1)
        found = found[batch["weights"] > 0]
        return ngrams.tally(ngrams.pack(found, self.begin + 1))

    def merge(self, one: Table, other: Table) -> Table:
        return ngrams.merge(one, other, self.memory * 2**20)

    def improve(
        self, params: PyTree, memory: PyTree, statistics: Table
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Estimates the parameters from the counts.

        Raises:
          DataError: the data has no target, a target outside the vocabulary, or more
            targets than 32 bits can count.
        """
        keys, counts = statistics
        total = int(counts.sum())
        if not 0 < total < 2**31:
            raise DataError(
                "data.sources",
                f"{total} tokens to predict",
                "1 to 2147483647, which 32-bit counts hold",
                "see objective.bos: without a beginning a text's first token is not "
                "predicted"
                if not total
                else "fit a part of the text",
            )
        grams = ngrams.unpack(keys, self.order, self.begin + 1)
        words = params["vocabulary"]
        if not words[grams[:, -1]].all():
            wrong = int(grams[~words[grams[:, -1]], -1][0])
            raise DataError(
                "data.sources",
                f"token {wrong} (bos or padding) as a target",
                "tokens of the vocabulary",
            )
        estimated: dict[str, Any]
        if self.smoothing == "add_k":
            estimated, found = self._added(grams, counts, int(words.sum()))
        else:
            estimated, found = smoothing.estimate(
                self.smoothing,
                grams,
                counts,
                words,
                prune=self.prune,
                fallback=self.discount_fallback,
            )
        return {"vocabulary": words} | estimated, memory, {"tokens": total} | found

    def _added(
        self, grams: np.ndarray, counts: np.ndarray, size: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters and the measurements of add_k."""
        trie = ngrams.build_trie(grams)
        starts = trie[str(self.order)]["starts"]
        totals = np.add.reduceat(counts, starts[:-1])
        spread = np.repeat(totals + self.k * size, np.diff(starts))
        logs = np.log(counts + self.k) - np.log(spread)
        measurements = {
            "loss": -float(np.dot(counts, logs)) / int(counts.sum()),
            "ngrams": len(counts),
            "contexts": len(totals),
        }
        params = {
            "trie": trie,
            "counts": counts.astype(np.int32),
            "totals": totals.astype(np.int32),
        }
        return params, measurements

    # ── Asked for probabilities ─────────────────────────────────────────────────────

    def __call__(self, batch: Batch, *, train: bool = False) -> Int[Array, "B T C"]:
        """Finds the rows of the contexts of each token, -1 for an unseen context.

        They take the part of hidden states: `logits` reads them. C is 1 with add_k, the
        whole context; otherwise there is a column for each length, the shortest first.
        """
        rows, _ = batch["inputs"].shape
        return self.extend(batch, self.make_cache(rows, 0))[0]

    def logits(self, hidden: Int[Array, "*any C"]) -> Float[Array, "*any V"]:
        """Returns log-probabilities in nats, float32; -inf outside the vocabulary."""
        words: jax.Array = self.get_variable("params", "vocabulary")
        if self.smoothing != "add_k":
            rows = hidden.reshape(-1, hidden.shape[-1])
            out = backoff.log_probs(self._table(), rows, words)
            return out.reshape(*hidden.shape[:-1], self.vocab_size)
        trie: dict[str, Any] = self.get_variable("params", "trie")
        counts: Any = self.get_variable("params", "counts")
        totals: jax.Array = self.get_variable("params", "totals")
        rows = hidden.reshape(-1)
        seen = jnp.where(rows >= 0, totals[jnp.maximum(rows, 0)], 0)
        spread = jnp.log(seen + self.k * words.sum())[:, None]
        unseen = jnp.where(words, math.log(self.k) - spread, -jnp.inf)
        out = ngrams.scatter(
            trie[str(self.order)],
            rows,
            unseen,
            lambda row, child: jnp.log(counts[child] + self.k) - spread[row, 0],
        )
        return out.reshape(*hidden.shape[:-1], self.vocab_size)

    def log_prob(
        self, hidden: Int[Array, "*any C"], targets: Int[Array, "*any"]
    ) -> Float[Array, "*any"]:
        """Returns the log-probability of each target, in nats."""
        words: jax.Array = self.get_variable("params", "vocabulary")
        found = backoff.log_prob(self._table(), hidden, targets)
        return jnp.where(words[targets], found, -jnp.inf)

    def best(self, hidden: Int[Array, "*any C"]) -> Int[Array, "*any"]:
        """Returns the most probable next token."""
        return backoff.best(self._table(), hidden)

    def _table(self) -> dict[str, Any]:
        params = self.variables["params"]
        # A parameter file stores no empty dictionaries, which a unigram model has.
        return {"contexts": {}, "grams": {}} | dict(params)

    # ── Decoding ────────────────────────────────────────────────────────────────────

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """Makes the cache: the last n - 1 tokens of each row, here begin symbols."""
        return {"tokens": jnp.full((rows, self.order - 1), self.begin, jnp.int32)}

    def cache_rows(self) -> Rows:
        return Rows()

    def extend(self, batch: Batch, cache: Cache) -> tuple[Int[Array, "B T C"], Cache]:
        """Returns the contexts of new tokens that follow the cache, and the new cache.

        Args:
          batch: as for a call; padding stands before a text, not after it.
        """
        inputs, before = batch["inputs"], cache["tokens"]
        history = ngrams.contexts(inputs, batch["positions"], before, self.begin)
        if self.smoothing == "add_k":
            trie: PyTree = self.get_variable("params", "trie")
            rows = ngrams.find(trie, history)[..., None]
        else:
            rows = backoff.find(self._table(), history)
        return rows, {"tokens": history[:, -1]}
