"""A model that lm does not know, fitted by expectation maximisation on the devices.

A mixture of unigram models: each row has a topic, p(row) = sum over topics of p(topic)
times the product of p(word | topic).
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.models.base import Compute, Head

FLOOR = 1e-3  # added to each expected count


class Model(nn.Module):
    vocab_size: int | None = None
    topics: int = 3
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"logits", "causal", "fit"})
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    statistics_on: ClassVar[str] = "device"

    def touch(self) -> None: ...

    def flops(self, batch):
        return None

    def small(self):
        return {}

    def exact(self, length):
        return {}

    def start(self, corpus: Any):
        rng = np.random.default_rng(0)
        size = (self.topics, self.vocab_size)
        words = np.log(rng.dirichlet(np.full(size[1], 5.0), size[0]))
        params = {
            "topics": np.full(size[:1], -np.log(size[0]), np.float32),
            "words": words.astype(np.float32),
        }
        return params, {"passes": np.zeros((), np.int32)}

    def statistics(self, params, batch):
        weights, targets = batch["weights"], batch["targets"]
        each = params["words"].T[targets] * weights[..., None]  # (B, T, topics)
        joint = params["topics"] + each.sum(axis=1)
        total = jax.nn.logsumexp(joint, axis=1)
        posterior = jnp.exp(joint - total[:, None]) * weights.any(axis=1)[:, None]
        counts = jax.nn.one_hot(targets, self.vocab_size) * weights[..., None]
        return {
            "topics": posterior.sum(axis=0),
            "words": jnp.einsum("bk,btv->kv", posterior, counts),
            "nats": -jnp.where(weights.any(axis=1), total, 0).sum(),
            "tokens": weights.sum(),
        }

    def improve(self, params, memory, statistics):
        topics, words = statistics["topics"] + FLOOR, statistics["words"] + FLOOR
        params = {
            "topics": jnp.log(topics / topics.sum()),
            "words": jnp.log(words / words.sum(axis=1, keepdims=True)),
        }
        loss = statistics["nats"] / statistics["tokens"]  # before this pass
        return params, {"passes": memory["passes"] + 1}, {"loss": loss}

    def __call__(self, batch, *, train=False):
        words = self.get_variable("params", "words")
        seen = words.T[batch["inputs"]] * (batch["positions"] > 0)[..., None]
        joint = self.get_variable("params", "topics") + jnp.cumsum(seen, axis=1)
        return jax.nn.log_softmax(joint)

    def logits(self, hidden):
        words = self.get_variable("params", "words")
        return jax.nn.logsumexp(hidden[..., None] + words, axis=-2)
