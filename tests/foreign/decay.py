"""A model that lm has never heard of, written from lm/models/base.py alone.

Each layer keeps a decaying sum of what it has read: h = a h + (1 - a) W x. Its state
has the layers first and the rows second, unlike any model of lm.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.base import Compute, Rows

LAYERS = 2


class Model(nn.Module):
    width: int = 16
    vocab_size: int | None = None
    compute: Compute = Compute()
    heads: tuple = ()

    can = frozenset({"hidden", "logits", "causal", "extend"})
    reads = frozenset()
    context = None

    def setup(self):
        self.words = nn.Embed(self.vocab_size, self.width)
        self.mix = [nn.Dense(self.width) for _ in range(LAYERS)]
        shape = (LAYERS, self.width)
        self.rate = self.param("rate", nn.initializers.normal(1.0), shape)

    def __call__(self, batch, *, train):
        cache = self.make_cache(len(batch["inputs"]), 0, 0)
        return self.extend(batch, cache)[0]

    def extend(self, batch, cache):
        x, last = self.words(batch["inputs"]), []
        begins, real = batch["positions"] == 0, batch["segment_ids"] != 0
        marks = (jnp.swapaxes(m, 0, 1)[..., None] for m in (begins & real, real))
        marks = tuple(marks)
        for i in range(LAYERS):
            keep = nn.sigmoid(self.rate[i])

            def step(h, token, keep=keep):
                x, begins, real = token
                h = jnp.where(begins, 0.0, h)
                h = jnp.where(real, keep * h + (1 - keep) * x, h)
                return h, h

            inputs = jnp.swapaxes(nn.tanh(self.mix[i](x)), 0, 1)
            h, x = jax.lax.scan(step, cache["sums"][i], (inputs, *marks))
            x = jnp.swapaxes(x, 0, 1)
            last.append(h)
        count = cache["count"] + real.sum()
        return x, {"sums": jnp.stack(last), "count": count}

    def make_cache(self, rows, length, source_length):
        sums = jnp.zeros((LAYERS, rows, self.width))
        return {"sums": sums, "count": jnp.zeros((), jnp.int32)}

    def cache_rows(self):
        return {"sums": Rows(1), "count": Rows(None)}

    def token_head(self):
        def logits(hidden, table):
            return (hidden @ table.T).astype(jnp.float32)

        return self.words.embedding, logits

    def logits(self, hidden):
        table, logits = self.token_head()
        return logits(hidden, table)

    def touch(self):
        one = jnp.ones((1, 1), jnp.int32)
        batch = {"inputs": one, "positions": one, "segment_ids": one}
        self.logits(self(batch, train=False))

    def flops(self, batch):
        return None

    def small(self):
        return {}

    def exact(self, length):
        return {}
