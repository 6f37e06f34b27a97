"""Heads: modules of an objective on hidden states (`lm.models.base.Head`)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.errors import ConfigError
from lm.models.base import Head, Trunk
from lm.models.blocks.layers import Dense, Dropout, Norm, named
from lm.ops.activations import activate
from lm.ops.dense import project


class Linear(nn.Module):
    """Applies a dense layer to each hidden state; outputs (..., outputs)."""

    trunk: Trunk
    outputs: int
    use_bias: bool = True

    def setup(self):
        trunk = self.trunk
        self.dense = Dense(
            (trunk.d_model,),
            (self.outputs,),
            ("embed", None),
            trunk.std,
            trunk.compute,
            use_bias=self.use_bias,
        )
        nn.share_scope(self, self.dense)

    def __call__(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any C"]:
        return self.dense(hidden)


class MaskedToken(nn.Module):
    """Computes BERT's logits of masked tokens (Devlin et al. 2019).

    They are dense, activation, norm, product with the token embeddings, bias. It is the
    module of a `Head` with `logits=True`.
    """

    trunk: Trunk

    def setup(self):
        trunk, dim = self.trunk, (self.trunk.d_model,)
        self.dense = Dense(dim, dim, ("embed", None), trunk.std, trunk.compute)
        self.norm = Norm(trunk.d_model, trunk.norm, trunk.norm_epsilon, trunk.use_bias)
        self.bias = self.param(
            "bias", named(nn.initializers.zeros, "vocab"), (trunk.vocab_size,)
        )

    def __call__(
        self, hidden: Float[Array, "*any D"], table: Float[Array, "V D"]
    ) -> Float[Array, "*any V"]:
        hidden = self.norm(activate(self.dense(hidden), self.trunk.activation))
        precision = self.trunk.compute.precision
        return project(hidden, table, precision=precision) + self.bias


class Heads(nn.Module):
    """Computes all heads of a model; the parameters are pooler and heads/<name>.

    A model makes it in `setup`, and its methods `head` and `logits` call this module:

        self.head_modules = Heads(self.heads, Trunk(d_model=..., ...))
        nn.share_scope(self, self.head_modules)
    """

    heads: tuple[Head, ...]
    trunk: Trunk

    def setup(self):
        trunk, dim = self.trunk, (self.trunk.d_model,)
        if any(head.pooler for head in self.heads):
            self.pooler = Dense(dim, dim, ("embed", None), trunk.std, trunk.compute)
        if self.heads:
            self.drop = Dropout(trunk.dropout)
            self.modules = Modules(self.heads, trunk, name="heads")

    def __call__(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Computes the output of a head, float32, for each row or each token.

        Args:
          segment_ids: of the batch, for a head that has to know what is padding.

        Raises:
          ConfigError: the head is on the first token, which sees no other here.
        """
        head = next(head for head in self.heads if head.name == name)
        if head.row == "first" and not self.trunk.bidirectional:
            raise ConfigError(
                "model.name",
                f"a model whose first token sees no other, with head {name!r} on it",
                "one whose first token sees the whole row, such as an encoder",
                "a row can be read at its last token: objective.summary=last, or, with "
                "an encoder, decoder",
            )
        if head.row == "first":
            hidden = hidden[:, 0]
        elif head.row is not None:
            assert segment_ids is not None  # they tell which tokens are padding
            hidden = POOLS[head.row](hidden, segment_ids != 0)
        if head.pooler:
            squash = {"tanh": jnp.tanh, "relu": nn.relu}[head.pooler]
            hidden = squash(self.pooler(hidden))
        found = self.modules(name, self.drop(hidden, train=train))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)

    def logits(
        self, hidden: Float[Array, "*any D"], table: Float[Array, "V D"]
    ) -> Float[Array, "*any V"]:
        """Computes the logits of the head that has `logits=True`."""
        name = next(head.name for head in self.heads if head.logits)
        return self.modules(name, hidden, table)

    def touch(self, hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> None:
        """Calls every head once, so that `init` creates their parameters."""
        for head in self.heads:
            if head.logits:
                self.logits(hidden, table)
            else:
                ones = jnp.ones(hidden.shape[:2], jnp.int32)
                self(head.name, hidden, ones, train=False)


def first_of(
    hidden: Float[Array, "B T D"], real: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """Takes the state of each row's first token that is real."""
    first = jnp.argmax(real, axis=1)
    return jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]


def last_of(
    hidden: Float[Array, "B T D"], real: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """Takes the state of each row's last token that is real."""
    last = hidden.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def max_of(
    hidden: Float[Array, "B T D"], real: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """Takes the largest value of each number over the real tokens of a row."""
    least = jnp.finfo(hidden.dtype).min
    return jnp.max(hidden, axis=1, where=real[..., None], initial=least)


def mean_of(
    hidden: Float[Array, "B T D"], real: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """Takes the mean of each number over the real tokens of a row, in float32."""
    total = jnp.sum(hidden, axis=1, where=real[..., None], dtype=jnp.float32)
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return (total / count).astype(hidden.dtype)


POOLS = {"first": first_of, "last": last_of, "max": max_of, "mean": mean_of}


class Modules(nn.Module):
    """Contains the heads, whose parameters are so named heads/<name>."""

    heads: tuple[Head, ...]
    trunk: Trunk

    def setup(self):
        self.by_name = {
            head.name: head.module(self.trunk, name=head.name) for head in self.heads
        }

    def __call__(self, name: str, *inputs: jax.Array) -> PyTree:
        return self.by_name[name](*inputs)
