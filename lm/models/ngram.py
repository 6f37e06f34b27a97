"""n-grams: the next token given the last n - 1, by counts with add-k smoothing.

    p(w | h) = (c(h w) + k) / (c(h) + k |V|)

(Chen and Goodman 1998, section 2.1, additive smoothing after Lidstone and Jeffreys;
Jurafsky and Martin, Speech and Language Processing, section 3.6). A text is preceded by
n - 1 begin symbols, which are never predicted; a bos token of the objective is a token
like any other, except that it is never predicted either. V is the tokenizer's
vocabulary without bos and padding, so that the unknown word and the end of a text count
as words. The model is fitted by one pass (`job = "fit"`) and has no gradients.

Parameters, all made by the pass, none by `touch`:

    trie/<j>/{starts,words}   the contexts (j < n) and the n-grams (j = n), see
                              lm.ops.ngrams; the begin symbol is word V
    counts, totals            c(h w) of each n-gram, c(h) of each context
    vocabulary                (V,) which ids are words
"""

import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import DataError
from lm.models.base import Compute, Head, Rows
from lm.ops import ngrams
from lm.ops.ngrams import Table

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "order": "[1, 6]",
    "k": "[1e-9, 1e9]",
}
CHANGEABLE = ("k",)

Batch = dict[str, Any]
Cache = dict[str, jax.Array]


class Model(nn.Module):
    """Counts of n-grams.

    Attributes:
      vocab_size: None is the tokenizer's.
      vocab_multiple: what the tokenizer's size is rounded up to.
      order: n, the tokens of an n-gram: 1 is a unigram model.
      k: what is added to each count. It is no part of the parameters: the counts of a
        run can be evaluated with another one.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    order: int = 3
    k: float = 1.0
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"logits", "causal", "extend", "fit"})
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["host"]] = "host"

    @property
    def begin(self) -> int:
        """The symbol before a text."""
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
        """The words of the vocabulary; counts come with the first pass."""
        codec = corpus.codec
        words = np.arange(self.begin) < codec.vocab_size
        words[[id for id in (codec.pad_id, codec.bos_id) if id is not None]] = False
        return {"vocabulary": words}, {}

    def statistics(self, params: PyTree, batch: Batch) -> Table:
        """The n-grams of a batch that end in a target of weight above 0."""
        inputs, positions = batch["inputs"], batch["positions"]
        before = np.full((len(inputs), self.order - 1), self.begin, np.int32)
        history = ngrams.contexts(inputs, positions, before, self.begin, np)
        found = np.concatenate([history, batch["targets"][..., None]], axis=-1)
        found = found[batch["weights"] > 0]
        return ngrams.tally(ngrams.pack(found, self.begin + 1))

    def merge(self, one: Table, other: Table) -> Table:
        return ngrams.merge(one, other)

    def improve(
        self, params: PyTree, memory: PyTree, statistics: Table
    ) -> tuple[PyTree, PyTree, dict[str, float]]:
        """The counts as a trie.

        Raises:
          DataError: no target in the data, a target that is no word, or more counts
            than 32 bits hold.
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
        trie = ngrams.build_trie(grams)
        starts = trie[str(self.order)]["starts"]
        totals = np.add.reduceat(counts, starts[:-1])
        sizes = np.diff(starts)
        spread = totals + self.k * words.sum()
        logs = np.log(counts + self.k) - np.log(np.repeat(spread, sizes))
        measurements = {
            "loss": -float(np.dot(counts, logs)) / total,
            "tokens": total,
            "ngrams": len(counts),
            "contexts": len(totals),
        }
        params = {
            "vocabulary": words,
            "trie": trie,
            "counts": counts.astype(np.int32),
            "totals": totals.astype(np.int32),
        }
        return params, memory, measurements

    # ── Asked for probabilities ─────────────────────────────────────────────────────

    def __call__(self, batch: Batch, *, train: bool = False) -> Int[Array, "B T 1"]:
        """For each token the row of its context in the trie, -1 if it was never seen.

        It is what other models call the hidden state: `logits` need no more.
        """
        rows, _ = batch["inputs"].shape
        return self.extend(batch, self.make_cache(rows, 0))[0]

    def logits(self, hidden: Int[Array, "*any 1"]) -> Float[Array, "*any V"]:
        """Log-probabilities of the next token, float32; -inf of what is no word."""
        words: jax.Array = self.get_variable("params", "vocabulary")
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

    # ── Decoding ────────────────────────────────────────────────────────────────────

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """The last n - 1 tokens of each row; before a text they are begin symbols."""
        return {"tokens": jnp.full((rows, self.order - 1), self.begin, jnp.int32)}

    def cache_rows(self) -> Rows:
        return Rows()

    def extend(self, batch: Batch, cache: Cache) -> tuple[Int[Array, "B T 1"], Cache]:
        """The contexts of new tokens after those of the cache, and the new cache.

        Args:
          batch: as for a call; padding stands before a text, not after it.
        """
        inputs, before = batch["inputs"], cache["tokens"]
        history = ngrams.contexts(inputs, batch["positions"], before, self.begin)
        rows = ngrams.find(self.get_variable("params", "trie"), history)
        return rows[..., None], {"tokens": history[:, -1]}
