"""A hidden Markov model of tags, by counts: bigrams, or trigrams as in TnT.

The states are tags, or pairs of tags, and each word is drawn from its tag. The model is
fitted in one pass over tagged sentences (`job = "fit"`, Brants 2000):

- p(tag | tags before) mixes the relative frequencies of unigrams, bigrams and trigrams,
  with shares found by deleted interpolation; no frequency is smoothed further;
- p(word | tag) is the relative frequency of a word that was seen, plus `smoothing` of
  each of its tags that other words have;
- a word that was not seen is drawn by its ending: p(tag | ending) of the words that
  were seen at most `rare` times, mixed from the shortest ending to the longest of up to
  `suffix` characters with the weight theta, the standard deviation of the tags'
  probabilities, and turned around by Bayes' rule. Words that begin with a capital have
  endings of their own.

A sentence begins after tags of its own and ends in a tag of its own. With `suffix` = 0
a new word has the same probability under each tag.

    word_keys (W,), word_tags (W, C)      hashes, sorted, and log p(word | tag)
    ending_keys (E,), ending_tags (E, C)  and log p(tag | ending) - log p(tag)
    new (2, C)                            the same for no known ending
    transitions (C + 1, C + 1, C + 1)     [i, j, k] log p(k | i, j); C begins and ends
"""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt

from lm.errors import DataError
from lm.models.base import Compute, Head
from lm.models.blocks import word_features
from lm.ops import words
from lm.ops.chain import Chain

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "order": "[2, 3]",
    "suffix": "[0, 32]",
    "rare": "[1, 1000000]",
    "smoothing": "[0, 1]",
}
CHANGEABLE = ()

Batch = dict[str, Any]


class Model(nn.Module):
    """A tagger by counts.

    Attributes:
      vocab_size: of the characters; None is the tokenizer's.
      vocab_multiple: the size is rounded up to a multiple of this number.
      order: 2 for bigrams of tags, 3 for trigrams.
      suffix: the longest ending of unknown words, in characters; 0: none.
      rare: the most that a word may be seen to count for its endings.
      smoothing: added to the count of a known word with each tag.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    order: int = 3
    suffix: int = 10
    rare: int = 10
    smoothing: float = 0.0
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"tags", "fit"})
    reads: ClassVar[frozenset[str]] = word_features.READS
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

    def _hashes(self, batch: Batch, xp: Any) -> Any:
        """Returns hashes (B, K, 2 + suffix): of the word, "capital", and its endings.

        The endings are those of 1 to `suffix` characters, each with the capital.
        """
        kinds = ["word", "capital", *(f"suffix:{n + 1}" for n in range(self.suffix))]
        parts = [words.parse(kind) for kind in kinds]
        found = word_features.hashes(parts, batch, xp)
        capital = (found[..., 1:2] != words.NONE).astype(xp.uint32)
        ends = xp.where(found[..., 2:] != words.NONE, found[..., 2:] ^ capital, 0)
        return xp.concatenate([found[..., :1], capital, ends.astype(xp.uint32)], -1)

    # ── Fitted by counts ────────────────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Returns no more than the number of tags; the first pass counts."""
        return {"tags": np.zeros(len(corpus.objective.labels), bool)}, {}

    def statistics(self, params: PyTree, batch: Batch) -> PyTree:
        """Collects the hashes and tags of the words of whole sentences.

        Returns:
          `hashes`, `labels` and `first`, whether a sentence begins, of each word.
        """
        read, first = word_features.borders(batch)
        return {
            "hashes": self._hashes(batch, np)[read],
            "labels": batch["labels"][read].astype(np.int32),
            "first": first,
        }

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        return {name: np.concatenate([one[name], other[name]]) for name in one}

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Makes probabilities of the counts.

        Raises:
          DataError: the data have no tagged words.
        """
        found, labels = statistics["hashes"], statistics["labels"]
        if not len(labels):
            raise DataError("data.sources", "no words with tags", "some")
        C = len(params["tags"])
        keys, where = np.unique(found[:, 0], return_inverse=True)
        counts = np.zeros((len(keys), C))
        np.add.at(counts, (where, labels), 1)
        tags = counts.sum(axis=0)
        smooth = counts + self.smoothing * (tags > 0)
        share = smooth / np.maximum(smooth.sum(axis=0), 1e-30)
        rare = counts.sum(axis=1)[where] <= self.rare
        made = {
            "word_keys": keys,
            "word_tags": _logs(share),
            **self._endings(found[rare], labels[rare], tags),
            "transitions": _logs(
                transitions(labels, statistics["first"], C, self.order)
            ),
        }
        measured = {"words": len(labels), "types": len(keys)}
        return params | made, memory, measured

    def _endings(
        self, found: UInt[np.ndarray, "N M"], labels: Int[np.ndarray, "N"], tags: Any
    ) -> PyTree:
        """Returns the tables of the endings of rare words."""
        prior = tags / tags.sum()
        C, some = len(tags), prior > 0
        if not self.suffix or not len(found):
            flat = np.zeros((1, C), np.float32)
            empty = np.array([words.NONE], np.uint32)
            return {"ending_keys": empty, "ending_tags": flat, "new": np.zeros((2, C))}
        theta = float(np.std(prior[some], ddof=1)) if some.sum() > 1 else 0.0
        shares: dict[int, np.ndarray] = {}
        new = np.zeros((2, C))
        for capital in (0, 1):
            own = labels[found[:, 1] == capital]
            count = np.bincount(own, minlength=C) / max(len(own), 1)
            new[capital] = (count + theta * prior) / (1 + theta)
            if not len(own):
                new[capital] = prior
        for size in range(self.suffix):
            column = found[:, 2 + size]
            real = column != words.NONE
            keys, where = np.unique(column[real], return_inverse=True)
            counts = np.zeros((len(keys), C))
            np.add.at(counts, (where, labels[real]), 1)
            counts /= counts.sum(axis=1, keepdims=True)
            first = np.zeros(len(keys), np.int64)  # a word that has this ending
            first[where] = np.flatnonzero(real)
            for key, share, row in zip(keys.tolist(), counts, first):
                shorter = found[row, 1 + size]
                before = shares[int(shorter)] if size else new[found[row, 1]]
                shares[key] = (share + theta * before) / (1 + theta)
        keys = np.array(sorted(shares), np.uint32)
        table = np.array([shares[int(key)] for key in keys])
        bayes = np.where(some, prior, 1.0)
        return {
            "ending_keys": keys,
            "ending_tags": _logs(table / bayes),
            "new": _logs(new / bayes),
        }

    # ── Asked for tags ──────────────────────────────────────────────────────────────

    def tag_chain(self, batch: Batch) -> Chain:
        """Returns the chain of the tags, or of pairs of tags, of each sentence."""
        params = self.variables["params"]
        found = self._hashes(batch, jnp)
        at = words.find(params["word_keys"], found[..., 0], jnp)
        W = len(params["word_keys"])
        known = params["word_tags"][jnp.minimum(at, W - 1)]
        new = params["new"][found[..., 1].astype(jnp.int32)]
        for size in range(self.suffix):
            place = words.find(params["ending_keys"], found[..., 2 + size], jnp)
            has = place < len(params["ending_keys"])
            place = jnp.minimum(place, len(params["ending_keys"]) - 1)
            new = jnp.where(has[..., None], params["ending_tags"][place], new)
        emissions = jnp.where((at < W)[..., None], known, new)
        return self._states(params["transitions"], emissions)

    def _states(
        self, moves: Float[Array, "D D D"], emissions: Float[Array, "B K C"]
    ) -> Chain:
        C = emissions.shape[-1]
        if self.order == 2:
            pairs = moves[C]  # a bigram does not depend on the first tag
            return Chain(emissions, pairs[:C, :C], pairs[C, :C], pairs[:C, C])
        # State i C + j is tag j after tag i; i = C begins a sentence.
        before, tag = jnp.divmod(jnp.arange((C + 1) * C), C)
        start = jnp.where(before == C, moves[C, C, tag], -jnp.inf)
        end = moves[before, tag, C]
        return Chain(emissions[..., tag], moves[:, :C, :C], start, end)

    def state_tags(self) -> Int[Array, "S"]:
        """Returns the tag of each state of the chain."""
        C = len(self.variables["params"]["tags"])
        return jnp.arange(C if self.order == 2 else (C + 1) * C) % C


def transitions(
    labels: Int[np.ndarray, "N"], first: np.ndarray, C: int, order: int
) -> Float[np.ndarray, "D D D"]:
    """Returns p(tag | two tags before), by deleted interpolation (Brants 2000, 2.2)."""
    D = C + 1
    uni, bi, tri = np.zeros(D), np.zeros((D, D)), np.zeros((D, D, D))
    starts = [*np.flatnonzero(first), len(labels)]
    for start, end in zip(starts, starts[1:]):
        tags = np.array([C, C, *labels[start:end], C])
        np.add.at(uni, tags[2:], 1)
        np.add.at(bi, (tags[1:-1], tags[2:]), 1)
        np.add.at(tri, (tags[:-2], tags[1:-1], tags[2:]), 1)
    before, pairs = bi.sum(axis=1), tri.sum(axis=2)

    def ratio(part: np.ndarray, whole: Any, less: int = 0) -> np.ndarray:
        below = whole - less
        return np.where(below > 0, (part - less) / np.where(below > 0, below, 1), 0.0)

    # Which frequency says most when the n-gram itself is taken out once.
    say = np.stack(
        [
            np.broadcast_to(ratio(uni, uni.sum(), 1), tri.shape),
            np.broadcast_to(ratio(bi, before[:, None], 1), tri.shape),
            ratio(tri, pairs[..., None], 1) if order == 3 else np.full(tri.shape, -1.0),
        ]
    )
    best = np.argmax(say, axis=0)
    shares = np.array([tri[best == n].sum() for n in range(3)]) / tri.sum()
    parts = (
        ratio(uni, uni.sum()),
        ratio(bi, before[:, None]),
        ratio(tri, pairs[..., None]),
    )
    return sum(share * part for share, part in zip(shares, parts))


def _logs(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(shares).astype(np.float32)
