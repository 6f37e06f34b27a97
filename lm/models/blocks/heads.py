"""What stands after the layers: heads that an objective asks for."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.models.blocks.layers import Dense, Shape, named, shape_norm
from lm.ops.activations import activate
from lm.ops.dense import project

# Heads through the pooler, and what follows it.
POOLED = {"pooled": jnp.tanh, "pooled_relu": nn.relu, "pooled_last": jnp.tanh}
# Heads on a row's first token, and on its last.
FIRST = ("pooled", "pooled_relu")
LAST = ("last", "pooled_last")


@dataclasses.dataclass(frozen=True)
class Head:
    """What an objective asks of the model beside hidden states.

    Attributes:
      name: its parameters are heads/<name>.
      kind: "mlm" (dense, activation, norm, then the token embedding as decoder, and a
        bias), "pooled" (the first token's state through the shared pooler and tanh,
        dense), "pooled_relu" (the same with relu), "pooled_last" (as "pooled", of the
        row's last token), "last" (the state of the row's last token, dense without
        bias) or "token" (each token's state, dense).
      outputs: how many; the mlm head has one for each word.
    """

    name: str
    kind: Literal["mlm", "pooled", "pooled_relu", "pooled_last", "last", "token"]
    outputs: int | None = None


class MlmHead(nn.Module):
    """BERT's masked-word head; its decoder is the table of token embeddings."""

    shape: Shape
    vocab_size: int

    def setup(self):
        shape, dim = self.shape, (self.shape.d_model,)
        std = shape.std(shape.d_model)
        self.dense = Dense(dim, dim, ("embed", None), std, shape.compute)
        self.norm = shape_norm(shape)
        self.bias = self.param(
            "bias", named(nn.initializers.zeros, "vocab"), (self.vocab_size,)
        )

    def __call__(
        self, hidden: Float[Array, "*any D"], table: Float[Array, "V D"]
    ) -> Float[Array, "*any V"]:
        hidden = self.norm(activate(self.dense(hidden), self.shape.activation))
        return (
            project(hidden, table, precision=self.shape.compute.precision) + self.bias
        )


class Heads(nn.Module):
    """The container that puts heads under heads/<name>."""

    heads: tuple[Head, ...]
    shape: Shape
    vocab_size: int

    def setup(self):
        self.modules = {head.name: self._make(head) for head in self.heads}

    def _make(self, head: Head) -> nn.Module:
        shape, dim = self.shape, (self.shape.d_model,)
        if head.kind == "mlm":
            return MlmHead(shape, self.vocab_size, name=head.name)
        return Dense(
            dim,
            (head.outputs,),
            ("embed", None),
            shape.std(shape.d_model),
            shape.compute,
            use_bias=head.kind != "last",
            name=head.name,
        )

    def __call__(self, name: str, *inputs: jax.Array) -> jax.Array:
        return self.modules[name](*inputs)
