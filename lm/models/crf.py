"""A conditional random field, or a Markov model of maximum entropy, over features.

The score of a tag at a word is the sum of the weights of the word's features with this
tag, and a pair of neighbouring tags has a weight too. Features come from templates such
as `"suffix:3"` or `"-1:lower"` (lm/ops/words.py). The CRF normalises over all sequences
of tags of a sentence (Lafferty et al. 2001), the MEMM at each word, given the tag
before (McCallum et al. 2000). The model is fitted (`job = "fit"`) by minimising

    -log p(tags | words) + c2 |w|^2

over all sentences, with L-BFGS (Liu and Nocedal 1989). A pass first collects the
features of the words; `iterations` of L-BFGS follow on them, and the next pass goes on
from there. The features that the first pass sees at least `min_count` times are those
of the model.

    features     (F,)       hashes, sorted
    lower, shape (V,)       tables of the characters
    weights/state           (F, C)
    weights/transitions     (C, C)   from row to column
    seen/state, seen/transitions     which weights may differ from 0
"""

import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.errors import ConfigError, DataError
from lm.models.base import Compute, Head
from lm.models.blocks import word_features
from lm.ops import chain, words
from lm.ops.chain import Chain

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "min_count": "[1, 1000000]",
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
      min_count: features seen less often in the training data are left out.
      every: which weights exist: those of features with tags, and of pairs of tags,
        that the training data has ("seen"), or "all".
      c2: the factor of the squared weights.
      iterations: the most steps of L-BFGS in each pass; it ends at a minimum.
      history: how many steps L-BFGS remembers.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    templates: tuple[str, ...] = ("bias", "word", "shape", "-1:word", "+1:word")
    normalise: Literal["sentence", "word"] = "sentence"
    min_count: int = 1
    every: Literal["seen", "all"] = "seen"
    c2: float = 0.1
    iterations: int = 50
    history: int = 6
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"tags", "fit"})
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["host"]] = "host"

    def touch(self) -> None:
        """Makes nothing: all parameters come from `start` and `improve`."""

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

    # ── Fitted by L-BFGS ────────────────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Makes the tables of characters; the first pass finds the features."""
        self._parts()
        return word_features.tables(corpus, self.vocab_size), {}

    def statistics(self, params: PyTree, batch: Batch) -> PyTree:
        """Collects the features, tags and sentences of the words of a batch.

        Returns:
          `features` (words, templates), `labels` (words,) and `first` (words,), whether
          a sentence begins. Words whose weight is 0 are left out.
        """
        batch = {name: np.asarray(array) for name, array in batch.items()}
        found = word_features.hashes(self._parts(), params, batch, np)
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
        """Takes `iterations` steps of L-BFGS.

        Raises:
          DataError: the data have no tagged words.
        """
        if not len(statistics["labels"]):
            raise DataError("data.sources", "no words with tags", "some")
        if "features" not in params:
            params = params | self._features(params, statistics)
        packed = pack(params["features"], statistics)
        weights, seen = params["weights"], params["seen"]
        state = memory.get("lbfgs")  # its arrays, by number
        weights, state, found = _minimise(
            self.normalise == "word",
            self.iterations,
            self.history,
            float(self.c2),
            weights,
            seen,
            packed,
            state,
        )
        loss = float(found["loss"])
        measured = {
            "loss": loss / len(statistics["labels"]),
            "objective": loss,
            "gradient": float(found["gradient"]),
            "steps": int(found["steps"]),
            "features": int(np.asarray(seen["state"]).sum()),
        }
        return params | {"weights": weights}, {"lbfgs": state}, measured

    def _features(self, params: PyTree, statistics: PyTree) -> PyTree:
        """Returns the features that are often enough, and weights of 0."""
        found, labels = statistics["features"], statistics["labels"]
        keys, counts = np.unique(found[found != words.NONE], return_counts=True)
        keys = keys[counts >= self.min_count]
        if not len(keys):
            expected = "some; lower model.min_count"
            raise DataError("data.sources", "no feature that is often enough", expected)
        C = len(params["tags"])
        seen = np.ones((len(keys), C), bool)
        pairs = np.ones((C, C), bool)
        if self.every == "seen":
            seen, pairs = np.zeros_like(seen), np.zeros_like(pairs)
            at = words.find(keys, found, np)
            for column in at.T:
                real = column < len(keys)
                seen[column[real], labels[real]] = True
            inner = ~statistics["first"][1:]
            pairs[labels[:-1][inner], labels[1:][inner]] = True
        zeros = {"state": seen, "transitions": pairs}
        weights = {name: np.zeros(x.shape, np.float32) for name, x in zeros.items()}
        return {"features": keys, "weights": weights, "seen": zeros}

    # ── Asked for tags ──────────────────────────────────────────────────────────────

    def tag_chain(self, batch: Batch) -> Chain:
        """Returns the scores of the tags of each word, and of pairs of them."""
        params = self.variables["params"]
        found = word_features.hashes(self._parts(), params, batch, jnp)
        at = words.find(params["features"], found, jnp)
        return scores(params["weights"], at, self.normalise == "word")

    def state_tags(self) -> Int[Array, "C"]:
        """Returns the tag of each state of the chain."""
        return jnp.arange(len(self.variables["params"]["tags"]))


def pack(keys: Any, statistics: PyTree) -> PyTree:
    """Packs sentences into rows, with the places of their features among the keys.

    A sentence that is longer than WIDTH makes all rows as long as it is.
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
    at = words.find(np.asarray(keys), statistics["features"], np).astype(np.int32)
    slots = rows * width

    def spread(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full((slots, *values.shape[1:]), fill, np.int32)
        out[where] = values
        return out.reshape(rows, width, *values.shape[1:])

    return {
        "features": spread(at, len(keys)),
        "labels": spread(statistics["labels"], 0),
        "segments": spread(np.repeat(numbers, sizes), 0),
    }


def scores(weights: PyTree, features: Int[Array, "B T M"], local: bool) -> Chain:
    """Makes the chain of tags from the places of the features; F is none."""
    state = weights["state"]
    C = state.shape[1]

    def add(total: jax.Array, at: Int[Array, "B T"]) -> tuple[jax.Array, None]:
        # A place outside gives zeros, and its gradient goes nowhere.
        return total + state.at[at].get(mode="fill", fill_value=0.0), None

    zeros = jnp.zeros((*features.shape[:2], C), jnp.float32)
    emissions, _ = jax.lax.scan(add, zeros, jnp.moveaxis(features, -1, 0))
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
    made = scores(weights, packed["features"], local)
    right = chain.score(made, labels, segments)
    if local:  # The sum over all sequences is 1.
        return -jnp.sum(right)
    return jnp.sum(chain.log_partition(made, segments) - right)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _minimise(
    local: bool,
    iterations: int,
    history: int,
    c2: Float[Array, ""],
    weights: PyTree,
    seen: PyTree,
    packed: PyTree,
    state: PyTree,
) -> tuple[PyTree, PyTree, dict[str, Any]]:
    """Runs L-BFGS with a line search by the strong Wolfe conditions."""

    def loss(weights: PyTree) -> Float[Array, ""]:
        own = jax.tree.map(lambda w, s: jnp.where(s, w, 0.0), weights, seen)
        squares = sum(jnp.sum(w * w) for w in jax.tree.leaves(own))
        return nats(own, packed, local) + c2 * squares

    solver = optax.lbfgs(memory_size=history)
    evaluate = optax.value_and_grad_from_state(loss)
    begun = solver.init(weights)
    if state is not None:
        leaves = [state[name] for name in sorted(state)]
        begun = jax.tree.unflatten(jax.tree.structure(begun), leaves)

    def step(carry: tuple) -> tuple:
        number, _, weights, state = carry
        value, gradient = evaluate(weights, state=state)
        updates, after = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        # At the minimum, within the precision of float32, no step makes it smaller.
        lower = optax.tree_utils.tree_get(after, "value") < value
        new = optax.apply_updates(weights, updates), after
        keep = lambda a, b: jnp.where(lower, a, b)  # noqa: E731
        return (number + 1, lower, *jax.tree.map(keep, new, (weights, state)))

    def goes_on(carry: tuple) -> Bool[Array, ""]:
        return (carry[0] < iterations) & carry[1]

    begin = (jnp.int32(0), jnp.bool_(True), weights, begun)
    number, _, weights, state = jax.lax.while_loop(goes_on, step, begin)
    value, gradient = jax.value_and_grad(loss)(weights)
    largest = jnp.max(
        jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)])
    )
    state = {f"{i:03}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return weights, state, {"loss": value, "gradient": largest, "steps": number}
