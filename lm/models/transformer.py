"""The Transformer: an encoder now (BERT, Devlin et al. 2019; RoBERTa, Liu et al. 2019).

    model = Model(**PRESETS["bert_tiny"], heads=(Head("mlm", "mlm"),))
    params = lm.step.make(model, objective).init(jax.random.key(0))
    hidden = model.apply({"params": params}, batch, train=False)

Parameters, where the fields ask for them:

    embed/{token,position,type}/embedding   embed/norm/{scale,bias}
    layers/attention/{query,key,value,output}/{kernel,bias}   (leading axis: layers)
    layers/attention_norm   layers/mlp/{up,down}   layers/mlp_norm
    norm   pooler   heads/<name>/...
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm.errors import ConfigError
from lm.models.layers import (
    Attention,
    Compute,
    Dense,
    Dropout,
    FeedForward,
    LayerNorm,
    Table,
    constrain,
    named,
)
from lm.ops.activations import activate
from lm.ops.attention import segment_mask
from lm.ops.positions import sinusoidal

BOUNDS = {
    "vocab_size": "[1, inf)",
    "vocab_multiple": "[1, inf)",
    "num_layers": "[1, inf)",
    "d_model": "[1, inf)",
    "num_heads": "[1, inf)",
    "head_dim": "[1, inf)",
    "d_ff": "[1, inf)",
    "max_len": "[1, inf)",
    "position_offset": "[0, inf)",
    "token_types": "[0, inf)",
    "norm_epsilon": "(0, inf)",
    "dropout": "[0, 1)",
    "attention_dropout": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Head:
    """What an objective asks of the model beside hidden states.

    Attributes:
      name: its parameters are heads/<name>.
      kind: "mlm" (dense, activation, norm, then the token embedding as decoder, and a
        bias) or "pooled" (the first token's state through the shared pooler, dense).
      outputs: of a pooled head; the mlm head has one for each word.
    """

    name: str
    kind: Literal["mlm", "pooled"]
    outputs: int | None = None


class Layer(nn.Module):
    """Self-attention and feed-forward, each with dropout, residual and norm."""

    d_model: int
    num_heads: int
    head_dim: int
    d_ff: int
    norm_position: str
    norm_epsilon: float
    activation: str
    dropout: float
    attention_dropout: float
    init_std: float
    compute: Compute

    def setup(self):
        self.attention = Attention(
            self.d_model,
            self.num_heads,
            self.head_dim,
            self.attention_dropout,
            self.init_std,
            self.compute,
        )
        self.mlp = FeedForward(
            self.d_model, self.d_ff, self.activation, self.init_std, self.compute
        )
        self.attention_norm = LayerNorm(self.d_model, self.norm_epsilon)
        self.mlp_norm = LayerNorm(self.d_model, self.norm_epsilon)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 T T"], train: bool
    ) -> tuple[Float[Array, "B T D"], None]:
        if self.norm_position == "pre":
            y = self.attention(self.attention_norm(x), mask, train=train)
            x = x + self.drop(y, train=train)
            x = x + self.drop(self.mlp(self.mlp_norm(x)), train=train)
        else:
            y = self.attention(x, mask, train=train)
            x = self.attention_norm(x + self.drop(y, train=train))
            x = self.mlp_norm(x + self.drop(self.mlp(x), train=train))
        return constrain(x, self.compute.rules, "batch", "length", None), None


class Embed(nn.Module):
    """The sum of token, position and type embeddings, normalised, with dropout."""

    vocab_size: int
    d_model: int
    max_len: int
    position: str
    position_offset: int
    token_types: int
    embedding_norm: bool
    norm_epsilon: float
    dropout: float
    init_std: float
    compute: Compute

    def setup(self):
        dim, std = self.d_model, self.init_std
        self.token = Table(self.vocab_size, dim, "vocab", std)
        if self.position == "learned":
            rows = self.max_len + self.position_offset
            self.learned = Table(rows, dim, None, std, name="position")
        if self.token_types:
            self.type = Table(self.token_types, dim, None, std)
        if self.embedding_norm:
            self.norm = LayerNorm(dim, self.norm_epsilon)
        self.drop = Dropout(self.dropout)

    def table(self) -> Float[Array, "V D"]:
        # Were it sharded over embed as well, a gather would make the compiler copy it.
        return constrain(self.token(), self.compute.rules, "vocab", None)

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        x = self.table()[batch["inputs"]]
        if self.position == "learned":
            length = batch["inputs"].shape[1]
            if length > self.max_len:
                raise ConfigError(
                    where="model.max_len",
                    found=f"{self.max_len} with rows of {length} tokens",
                    expected="a table of positions as long as the rows",
                    fix=f"set model.max_len={length} or a shorter seq_len",
                )
            x += self.learned()[batch["positions"] + self.position_offset]
        elif self.position == "sinusoidal":
            x += sinusoidal(batch["positions"] + self.position_offset, self.d_model)
        if self.token_types:
            x += self.type()[batch["token_types"]]
        if self.embedding_norm:
            x = self.norm(x)
        x = self.drop(x.astype(self.compute.dtype), train=train)
        return constrain(x, self.compute.rules, "batch", "length", None)


class MlmHead(nn.Module):
    """BERT's masked-word head; its decoder is the table of token embeddings."""

    vocab_size: int
    d_model: int
    norm_epsilon: float
    activation: str
    init_std: float
    compute: Compute

    def setup(self):
        dim = (self.d_model,)
        self.dense = Dense(dim, dim, ("embed", None), self.init_std, self.compute)
        self.norm = LayerNorm(self.d_model, self.norm_epsilon)
        self.bias = self.param(
            "bias", named(nn.initializers.zeros, "vocab"), (self.vocab_size,)
        )

    def __call__(
        self, hidden: Float[Array, "*any D"], table: Float[Array, "V D"]
    ) -> Float[Array, "*any V"]:
        hidden = self.norm(activate(self.dense(hidden), self.activation))
        logits = jnp.einsum(
            "...d,vd->...v",
            hidden,
            table.astype(hidden.dtype),
            precision=self.compute.precision,
            preferred_element_type=jnp.float32,
        )
        return logits + self.bias


class Heads(nn.Module):
    """The container that puts heads under heads/<name>."""

    heads: tuple[Head, ...]
    vocab_size: int
    d_model: int
    norm_epsilon: float
    activation: str
    init_std: float
    compute: Compute

    def setup(self):
        self.modules = {
            head.name: self._make(head, name=head.name) for head in self.heads
        }

    def _make(self, head: Head, name: str) -> nn.Module:
        if head.kind == "mlm":
            return MlmHead(
                self.vocab_size,
                self.d_model,
                self.norm_epsilon,
                self.activation,
                self.init_std,
                self.compute,
                name=name,
            )
        return Dense(
            (self.d_model,),
            (head.outputs,),
            ("embed", None),
            self.init_std,
            self.compute,
            name=name,
        )

    def __call__(self, name: str, *inputs: jax.Array) -> jax.Array:
        return self.modules[name](*inputs)


class Model(nn.Module):
    """A Transformer encoder; its fields are the options of config.model.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      head_dim: None means d_model / num_heads.
      max_len: the longest row; a learned table has max_len + position_offset rows.
      position_offset: the row of a document's first token (2 in RoBERTa).
      token_types: kinds of segment (sentence A, sentence B); 0: no such embedding.
      norm_position: "post" as BERT, or "pre" with one more norm after the last layer.
      embedding_norm: a norm on the sum of the embeddings, as BERT has.
      init_std: standard deviation, before truncation at two of them, of each matrix.
      heads: what the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    num_layers: int = 12
    d_model: int = 768
    num_heads: int = 12
    head_dim: int | None = None
    d_ff: int = 3072
    max_len: int = 512
    position: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = 0
    token_types: int = 2
    norm: Literal["layer"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-12
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    embedding_norm: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    def setup(self):
        std, compute = self.init_std, self.compute
        self.embed = Embed(
            self.vocab_size,
            self.d_model,
            self.max_len,
            self.position,
            self.position_offset,
            self.token_types,
            self.embedding_norm,
            self.norm_epsilon,
            self.dropout,
            std,
            compute,
        )
        unroll = compute.unroll or self.num_layers
        self.layers = nn.scan(
            _rematerialised(Layer, compute),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_layers,
            unroll=unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.d_model,
            self.num_heads,
            self.head_dim or self.d_model // self.num_heads,
            self.d_ff,
            self.norm_position,
            self.norm_epsilon,
            self.activation,
            self.dropout,
            self.attention_dropout,
            std,
            compute,
        )
        if self.norm_position == "pre":
            self.last_norm = LayerNorm(self.d_model, self.norm_epsilon, name="norm")
        if any(head.kind == "pooled" for head in self.heads):
            dim = (self.d_model,)
            self.pooler = Dense(dim, dim, ("embed", None), std, compute)
            self.drop = Dropout(self.dropout)
        if self.heads:
            self.all_heads = Heads(
                self.heads,
                self.vocab_size,
                self.d_model,
                self.norm_epsilon,
                self.activation,
                std,
                compute,
                name="heads",
            )

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Hidden states of the last layer.

        Args:
          batch: `inputs`, `positions`, `segment_ids` and, where the model has such
            embeddings, `token_types`, each (B, T). A token sees its own segment only.
          train: whether dropout is on; it needs the rng stream "dropout".
        """
        mask = segment_mask(batch["segment_ids"], batch["segment_ids"])
        x = self.embed(batch, train=train)
        x, _ = self.layers(x, mask, train)
        return self.last_norm(x) if self.norm_position == "pre" else x

    def logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """The masked-word head, float32; give it the masked places only, (B, K, D)."""
        name = next(head.name for head in self.heads if head.kind == "mlm")
        return self.all_heads(name, hidden, self.embed.table())

    def head(
        self, name: str, hidden: Float[Array, "B T D"], *, train: bool
    ) -> Float[Array, "B C"]:
        """A pooled head's outputs, float32, from the first token of each row."""
        pooled = jnp.tanh(self.pooler(hidden[:, 0]))
        return self.all_heads(name, self.drop(pooled, train=train)).astype(jnp.float32)

    def touch(self) -> None:
        """Goes through every module once, so that `init` makes every parameter."""
        one = jnp.zeros((1, 1), jnp.int32)
        names = ("inputs", "positions", "segment_ids", "token_types")
        hidden = self(dict.fromkeys(names, one), train=False)
        for head in self.heads:
            if head.kind == "mlm":
                self.logits(hidden)
            else:
                self.head(head.name, hidden, train=False)


def _rematerialised(layer: type[nn.Module], compute: Compute) -> type[nn.Module]:
    if compute.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    keeps = {"dots": policies.dots_saveable, "full": policies.nothing_saveable}
    return nn.remat(
        layer,
        policy=keeps[compute.remat],
        # Inside a loop nothing can be merged across iterations; unrolled it could.
        prevent_cse=compute.unroll != 1,
        static_argnums=(3,),
    )
