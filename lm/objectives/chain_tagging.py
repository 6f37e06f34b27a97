"""Tagging by a model that is itself a chain of tags: HMM, MEMM or CRF over features.

Rows, labels and scores are those of `tagging`. The tokenizer is one of characters, from
which the model makes what it wants to know of words, and a row holds whole sentences.
A state of the chain stands for a tag, perhaps for the tag before it too.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm.data.index import Index
from lm.models.base import Head, Trunk
from lm.objectives import tagging
from lm.objectives.base import Batch, Terms
from lm.ops import chain, losses, words
from lm.tokenizers.base import Codec


class Weights(nn.Module):
    """The weights of features with tags (D, C), and of pairs of tags (C, C).

    It is the module of a `Head` for models whose D features are known before the data
    are. All weights begin at 0.
    """

    trunk: Trunk
    tags: int

    def setup(self):
        zeros = nn.initializers.zeros
        self.state = self.param("state", zeros, (self.trunk.d_model, self.tags))
        self.transitions = self.param("transitions", zeros, (self.tags, self.tags))

    def __call__(self) -> dict[str, jax.Array]:
        return {"state": self.state, "transitions": self.transitions}


@dataclasses.dataclass(frozen=True)
class Spelled:
    """Adds the arrays `lowered` and `classes` of the characters of a row."""

    letters: words.Letters

    def __call__(self, example: dict[str, Any], rng: Any) -> dict[str, Any]:
        ids = example["inputs"]
        lowered, classes = self.letters.lowered[ids], self.letters.classes[ids]
        return example | {"lowered": lowered, "classes": classes}


@dataclasses.dataclass(frozen=True)
class Objective(tagging.Objective):
    """Options of `chain_tagging`: those of `tagging`, of which `pieces` and `decoder`
    have no effect. `constrain` acts in decoding alone.
    """

    wrap: Literal["delimiters", "bos", "none"] = "none"

    can: ClassVar[frozenset[str]] = frozenset({"tags"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tags"})

    @property
    def gives(self) -> frozenset[str]:
        return super().gives | {"lowered", "classes"}

    @property
    def along(self) -> frozenset[str]:
        return super().along | {"lowered", "classes"}

    def heads(self) -> tuple[Head, ...]:
        return (Head("chain", functools.partial(Weights, tags=len(self.labels))),)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = [codec.token(i) for i in range(codec.vocab_size)]
        first = super().transforms(index, codec, seq_len=seq_len)
        return (*first, Spelled(words.alphabet(names)))

    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms:
        """Returns -log p of the tags, summed, and the number of words.

        It is p(tags | words), for an HMM too.
        """
        return {"tag": self._nats(model.tag_chain(batch), model.state_tags(), batch)}

    def _nats(self, scores: chain.Chain, tags: Array, batch: Batch) -> tuple:
        weights = batch["label_weights"]
        read = jnp.where(weights > 0, batch["word_segments"], 0)
        allowed = tags == batch["labels"][..., None]
        gold = jnp.where(allowed, scores.emissions, -jnp.inf)
        total = chain.log_partition(scores, read)
        right = chain.log_partition(scores._replace(emissions=gold), read)
        nats, _ = losses.weighted(total - right, weights.max(axis=1))
        return nats, weights.sum()

    def metrics(self, model: Any, batch: Batch) -> Terms:
        """Returns the loss, and the share of the words whose decoded tag is right."""
        scores, tags = model.tag_chain(batch), model.state_tags()
        found = self._best(scores, tags, batch)
        right = losses.weighted(found == batch["labels"], batch["label_weights"])
        return {"tag_loss": self._nats(scores, tags, batch), "tag_accuracy": right}

    def _best(self, scores: chain.Chain, tags: Array, batch: Batch) -> Array:
        scores = self._allowed(scores, tags, batch)
        return tags[chain.best(scores, batch["word_segments"]).labels[:, 0]]

    def _allowed(self, scores: chain.Chain, tags: Array, batch: Batch) -> chain.Chain:
        """Excludes the sequences of tags that the scheme does not allow."""
        if self.constrain == "none":
            return scores
        count = len(self.labels)
        zeros = jnp.zeros((*batch["labels"].shape, count))
        never = self._constrained(chain.Chain(zeros, jnp.zeros((count, count))), batch)
        emissions = scores.emissions + never.emissions[..., tags]
        pairs = never.transitions
        if scores.transitions.ndim != 3:
            pairs = pairs[tags[:, None], tags]
        return scores._replace(
            emissions=emissions, transitions=scores.transitions + pairs
        )

    def predict(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Returns `tags` (B, K) and `probabilities` (B, K), as `tagging` does."""
        tags, segments = model.state_tags(), batch["word_segments"]
        scores = self._allowed(model.tag_chain(batch), tags, batch)
        found = tags[chain.best(scores, segments).labels[:, 0]]
        states = chain.marginals(scores, segments)
        own = jnp.sum(jnp.where(tags == found[..., None], states, 0.0), axis=-1)
        return {"tags": found, "probabilities": own}
