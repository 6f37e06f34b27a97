"""A conditional random field, or a Markov model of maximum entropy, over features.

The score of a tag at a word is the sum of the weights of the word's features with this
tag, and a pair of neighbouring tags has a weight too. Features come from templates such
as `"suffix:3"` or `"-1:lower"` (lm/ops/words.py). The CRF normalises over all sequences
of tags of a sentence (Lafferty et al. 2001), the MEMM at each word, given the tag
before (McCallum et al. 2000).

With `job = "fit"` the weights minimise, over all sentences,

    -log p(tags | words) + c1 |w|_1 + c2 |w|^2

by L-BFGS, or with c1 by OWL-QN (lm/ops/quasi_newton.py). A pass first collects the
features of the words; `iterations` follow on them, and the next pass goes on from
there. The features that the first pass sees at least `min_count` times are those of the
model. With `buckets` there are so many features, whatever the data: each falls into one
by its hash, so that the weights have 4 bytes for each bucket and tag, and their fit
needs 2 `history` + 6 times as much. Then `job = "train"` trains them as well, from
random batches with any optimiser, whose weight decay takes the place of c1 and c2.

    features                        (F,)     hashes, sorted; not with buckets
    heads/chain/state               (F, C)
    heads/chain/transitions         (C, C)   from row to column
    seen/state, seen/transitions    which weights may differ from 0; of a fit
"""

import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import ConfigError, DataError
from lm.models.base import Compute, Head, Trunk
from lm.models.blocks import word_features
from lm.models.blocks.heads import Modules
from lm.ops import chain, quasi_newton, sparse, words
from lm.ops.chain import Chain

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "min_count": "[1, 1000000]",
    "buckets": "[1, 2147483646]",
    "c1": "[0, inf)",
    "c2": "[0, inf)",
    "iterations": "[1, 1000000]",
    "history": "[1, 100]",
}
CHANGEABLE = ("iterations",)

Batch = dict[str, Any]

WIDTH = 128  # words of a row in which sentences are packed for the fit


class Model(nn.Module):
    """A linear chain of tags over features of words.

    Attributes:
      vocab_size: of the characters; None is the tokenizer's.
      vocab_multiple: the size is rounded up to a multiple of this number.
      templates: the features; see lm/ops/words.py.
      normalise: over the "sentence" (CRF) or at each "word" (MEMM).
      buckets: how many features there are, by hashing; None: those that the first pass
        sees.
      min_count: features, or buckets, that the training data has less often are left
        out.
      every: which weights exist: those of features with tags, and of pairs of tags,
        that the training data has ("seen"), or "all".
      c1: the factor of the absolute weights, which makes many exactly 0.
      c2: the factor of the squared weights.
      iterations: the most steps in each pass; it ends at a minimum.
      history: how many steps L-BFGS and OWL-QN remember.

    All from `min_count` on have no effect on job train.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    templates: tuple[str, ...] = ("bias", "word", "shape", "-1:word", "+1:word")
    normalise: Literal["sentence", "word"] = "sentence"
    buckets: int | None = None
    min_count: int = 1
    every: Literal["seen", "all"] = "seen"
    c1: float = 0.0
    c2: float = 0.1
    iterations: int = 50
    history: int = 6
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"tags", "fit"})
    reads: ClassVar[frozenset[str]] = word_features.READS
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["host"]] = "host"

    def setup(self):
        trunk = Trunk(self.buckets or 0, self.vocab_size or 0, 1.0)
        self.modules = Modules(self.heads, trunk, name="heads")

    def touch(self) -> None:
        """Makes the weights of buckets; others come from `start` and `improve`."""
        if self.buckets:
            for head in self.heads:
                self.modules(head.name)

    def flops(self, batch: Batch) -> float | None:
        return None

    def small(self) -> dict[str, Any]:
        return {"iterations": 2}

    def exact(self, length: int) -> dict[str, Any]:
        return {}

    def _parts(self) -> list[tuple[words.Part, ...]]:
        """Reads the templates; ConfigError for one that is none."""
        try:
            return [words.parse(template) for template in self.templates]
        except ValueError as error:
            expected = '"word", "suffix:3", "-1:lower|lower" and the like'
            raise ConfigError("model.templates", str(error), expected) from error

    # ── Fitted by L-BFGS or OWL-QN ──────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Makes weights of 0; without buckets of no feature, until the first pass."""
        self._parts()
        C = len(corpus.objective.labels)
        zeros = {"state": (self.buckets or 0, C), "transitions": (C, C)}
        return {"heads": {"chain": _zeros(zeros)}}, {}

    def statistics(self, params: PyTree, batch: Batch) -> PyTree:
        """Collects the features, tags and sentences of the words of a batch.

        Returns:
          `features` (words, templates), `labels` (words,) and `first` (words,), whether
          a sentence begins. Words whose weight is 0 are left out.
        """
        batch = {name: np.asarray(array) for name, array in batch.items()}
        found = word_features.hashes(self._parts(), batch, np)
        read, first = word_features.borders(batch)
        return {
            "features": found[read],
            "labels": batch["labels"][read].astype(np.int32),
            "first": first,
        }

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        return {name: np.concatenate([one[name], other[name]]) for name in one}

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Takes `iterations` steps of L-BFGS or OWL-QN.

        Raises:
          DataError: the data have no tagged words.
        """
        if not len(statistics["labels"]):
            raise DataError("data.sources", "no words with tags", "some")
        if "seen" not in params:
            params = params | self._features(params, statistics)
        weights, seen = params["heads"]["chain"], params["seen"]
        at = self.places(params, statistics["features"], np)
        packed = pack(at, len(weights["state"]), statistics)
        found = minimise(
            self.normalise == "word",
            self.iterations,
            self.history,
            float(self.c1),
            jnp.float32(self.c2),
            weights,
            seen,
            packed,
            memory.get("newton"),
        )
        loss = float(found.value)
        measured = {
            "loss": loss / len(statistics["labels"]),
            "objective": loss,
            "gradient": float(found.gradient),
            "steps": int(found.steps),
            "features": int(np.asarray(seen["state"]).sum()),
            "nonzero": int(np.count_nonzero(found.weights["state"])),
        }
        made = params | {"heads": {"chain": found.weights}}
        return made, {"newton": found.memory}, measured

    def places(self, params: PyTree, features: Any, xp: Any) -> Any:
        """Returns the rows of features in the table of weights; its size is none."""
        if self.buckets:
            return words.bucket(features, self.buckets, xp)
        return words.find(params["features"], features, xp)

    def _features(self, params: PyTree, statistics: PyTree) -> PyTree:
        """Returns the features that are often enough, and weights of 0."""
        found, labels = statistics["features"], statistics["labels"]
        C = len(params["heads"]["chain"]["transitions"])
        made: dict[str, Any] = {}
        if self.buckets:
            at = self.places(params, found, np)
            counts = np.bincount(at.reshape(-1), minlength=self.buckets + 1)[:-1]
            kept = counts >= self.min_count
        else:
            keys, counts = np.unique(found[found != words.NONE], return_counts=True)
            made["features"] = keys = keys[counts >= self.min_count]
            kept = np.ones(len(keys), bool)
            at = words.find(keys, found, np) if len(keys) else None
        if not kept.any():
            expected = "some; lower model.min_count"
            raise DataError("data.sources", "no feature that is often enough", expected)
        seen = np.broadcast_to(kept[:, None], (len(kept), C)).copy()
        pairs = np.ones((C, C), bool)
        if self.every == "seen":
            both, pairs = np.zeros_like(seen), np.zeros_like(pairs)
            for column in at.T:
                real = column < len(kept)
                both[column[real], labels[real]] = True
            seen &= both
            inner = ~statistics["first"][1:]
            pairs[labels[:-1][inner], labels[1:][inner]] = True
        weights = _zeros({"state": seen.shape, "transitions": pairs.shape})
        made["heads"] = {"chain": weights}
        return made | {"seen": {"state": seen, "transitions": pairs}}

    # ── Asked for tags ──────────────────────────────────────────────────────────────

    def tag_chain(self, batch: Batch) -> Chain:
        """Returns the scores of the tags of each word, and of pairs of them."""
        params = self.variables["params"]
        found = word_features.hashes(self._parts(), batch, jnp)
        weights = params["heads"]["chain"]
        emissions = sparse.row_sums(weights["state"], self.places(params, found, jnp))
        return scores(weights, emissions, self.normalise == "word")

    def state_tags(self) -> Int[Array, "C"]:
        """Returns the tag of each state of the chain."""
        return jnp.arange(
            len(self.variables["params"]["heads"]["chain"]["transitions"])
        )


def _zeros(shapes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def pack(at: Int[np.ndarray, "N M"], rows_of: int, statistics: PyTree) -> PyTree:
    """Packs sentences into rows.

    A sentence that is longer than WIDTH makes all rows as long as it is.

    Args:
      at: the rows of the features of each word in the table of weights.
      rows_of: the rows of this table, which stand for none.

    Returns:
      `features`, `labels`, `segments`, and `order` for the gradient of the table.
    """
    starts = np.flatnonzero(statistics["first"])
    sizes = np.diff([*starts, len(statistics["first"])])
    width = max(WIDTH, int(sizes.max()))
    rows, places = 0, np.zeros(len(sizes), np.int64)
    numbers, used, number = np.zeros(len(sizes), np.int32), width, 0
    for i, size in enumerate(sizes.tolist()):
        if used + size > width:
            rows, used, number = rows + 1, 0, 0
        number += 1
        places[i], numbers[i] = (rows - 1) * width + used, number
        used += size
    where = np.arange(len(statistics["first"])) + np.repeat(places - starts, sizes)
    slots = rows * width

    def spread(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full((slots, *values.shape[1:]), fill, np.int32)
        out[where] = values
        return out.reshape(rows, width, *values.shape[1:])

    features = spread(at, rows_of)
    return {
        "features": features,
        "labels": spread(statistics["labels"], 0),
        "segments": spread(np.repeat(numbers, sizes), 0),
        "order": sparse.by_row(features, rows_of),
    }


def scores(weights: PyTree, emissions: Float[Array, "B T C"], local: bool) -> Chain:
    """Makes the chain of tags from the summed weights of each word's features."""
    if not local:
        return Chain(emissions, weights["transitions"])
    each = emissions[:, :, None, :] + weights["transitions"]
    return Chain(
        jnp.zeros_like(emissions),
        jax.nn.log_softmax(each),
        jax.nn.log_softmax(emissions),
    )


def nats(weights: PyTree, packed: PyTree, local: bool) -> Float[Array, ""]:
    """Computes -log p of the tags of all sentences."""
    segments, labels = packed["segments"], packed["labels"]
    emissions = sparse.sorted_row_sums(
        weights["state"], packed["features"], packed["order"]
    )
    made = scores(weights, emissions, local)
    if local:  # The sum over all sequences is 1.
        return -jnp.sum(chain.score(made, labels, segments))
    return jnp.sum(chain.nats(made, labels, segments))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def minimise(
    local: bool,
    iterations: int,
    history: int,
    c1: float,
    c2: Float[Array, ""],
    weights: PyTree,
    seen: PyTree,
    packed: PyTree,
    memory: PyTree,
) -> quasi_newton.Found:
    """Fits the weights that may differ from 0 to packed sentences."""

    def loss(weights: PyTree) -> Float[Array, ""]:
        own = jax.tree.map(lambda w, s: jnp.where(s, w, 0.0), weights, seen)
        squares = sum(jnp.sum(w * w) for w in jax.tree.leaves(own))
        return nats(own, packed, local) + c2 * squares

    options = {"steps": iterations, "history": history}
    if c1:
        return quasi_newton.owlqn(loss, c1, weights, memory, **options)
    return quasi_newton.lbfgs(loss, weights, memory, **options)
