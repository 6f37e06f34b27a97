"""A causal convolutional language model with gates (Dauphin et al. 2017).

Each layer is a residual block. Its gated convolution sees the last `width` tokens of
its own text, so that the model sees (width - 1) x num_layers + 1 tokens, in all layers
at once and without positions. Its cache is the last width - 1 inputs of each layer.

    embed/embedding
    layers/conv/{kernel,bias}        (leading axis: layers; kernel (K, D, 2, D))
    layers/{down,up}/{kernel,bias}   with a bottleneck: (D, 2, C) and (C, 2, D)
    output/embedding   pooler   heads/<name>/...
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.models.base import Batch, Compute, Head, Rows, Shapes, Trunk
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import Dense, Dropout, Table, constrain, rematerialised
from lm.ops.convolution import pad, windows
from lm.ops.dense import project

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "num_layers": "[1, 4096]",
    "d_model": "[1, 1048576]",
    "width": "[2, 4096]",
    "bottleneck": "[1, 1048576]",
    "dropout": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

Cache = dict[str, jax.Array]


class Gated(nn.Module):
    """Applies a dense layer to half of whose outputs the other half is a gate."""

    inputs: tuple[int, ...]
    outputs: int
    axes: tuple[str | None, ...]
    gate: str
    init_std: float | None
    compute: Compute

    def setup(self):
        fan_in = math.prod(self.inputs)
        # A gate halves a number: twice the usual deviation keeps it (Gehring et al.
        # 2017, section 3.5).
        std = self.init_std or 2.0 * fan_in**-0.5
        sizes = self.inputs, (2, self.outputs)
        self.dense = Dense(*sizes, self.axes, std, self.compute)
        nn.share_scope(self, self.dense)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "*any D"]:
        value, gate = jnp.moveaxis(self.dense(x), -2, 0)
        if self.gate == "gtu":
            value = jnp.tanh(value)
        return value * jax.nn.sigmoid(gate)


class Block(nn.Module):
    """Computes a gated convolution and adds its input.

    With a bottleneck it stands between two gated layers that change the width
    (Dauphin et al. 2017, section 4.1, after He et al. 2016).
    """

    dim: int
    width: int
    bottleneck: int | None
    gate: str
    dropout: float
    init_std: float | None
    compute: Compute

    def setup(self):
        inner = self.bottleneck or self.dim
        gated = functools.partial(
            Gated, gate=self.gate, init_std=self.init_std, compute=self.compute
        )
        if self.bottleneck:
            self.down = gated((self.dim,), inner, ("embed", None, "mlp"))
            self.up = gated((inner,), self.dim, ("mlp", None, "embed"))
        self.conv = gated((self.width, inner), inner, (None, "embed", None, "mlp"))
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: Float[Array, "B P C"] | None,
        segments: Int[Array, "B S"],
        train: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B P C"] | None]:
        """Returns the outputs, and the cache with the last inputs of the convolution.

        Args:
          cache: the last P = K - 1 inputs of the convolution before x, if any.
          segments: of these inputs and of x, S = P + T.
        """
        y = self.drop(x, train=train)
        if self.bottleneck:
            y = self.down(y)
        if cache is None:
            y = pad(y, width=self.width)
        else:
            y = jnp.concatenate([cache.astype(y.dtype), y], axis=1)
            cache = y[:, 1 - self.width :]
        y = self.conv(windows(y, segments, width=self.width))
        if self.bottleneck:
            y = self.up(y)
        # Without the factor the states would grow from layer to layer.
        x = (x + y) * jnp.asarray(0.5**0.5, x.dtype)
        return constrain(x, self.compute.rules, "batch", "length", None), cache


class Model(nn.Module):
    """A gated convolutional network over tokens, from left to right.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      num_layers: number of residual blocks.
      d_model: size of the states between the blocks, and of an embedding.
      width: how many tokens a convolution sees, the token itself included.
      bottleneck: size of the convolution's inputs and outputs; None: d_model, and no
        layers before and after it.
      gate: "glu" multiplies a linear value by the gate, "gtu" its tanh (van den Oord et
        al. 2016).
      dropout: of the inputs of each block, and of the last block's outputs.
      output: "tied" is the token embedding, "untied" a table of its own.
      init_std: standard deviation, before truncation at two of them, of each kernel;
        None: 2 / sqrt(inputs).
      heads: the heads that the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    num_layers: int = 8
    d_model: int = 256
    width: int = 4
    bottleneck: int | None = None
    gate: Literal["glu", "gtu"] = "glu"
    dropout: float = 0.1
    output: Literal["tied", "untied"] = "tied"
    init_std: float | None = None
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    vectors_at: ClassVar[str] = "embed/embedding"

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        return frozenset({"embeds", "hidden", "logits", "causal", "extend", "head"})

    @property
    def reads(self) -> frozenset[str]:
        """Returns that a batch needs inputs, positions and segment_ids only."""
        return frozenset()

    @property
    def context(self) -> None:
        """Returns None: rows may have any length."""

    def setup(self):
        dim, compute = self.d_model, self.compute
        self.embed = Table(self.vocab_size, dim, "vocab", dim**-0.5)
        self.layers = nn.scan(
            rematerialised(Block, compute, static=(4,)),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.num_layers,
            unroll=compute.unroll or self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            dim,
            self.width,
            self.bottleneck,
            self.gate,
            self.dropout,
            self.init_std,
            compute,
        )
        self.drop_last = Dropout(self.dropout)
        if self.output == "untied":
            size = (self.vocab_size, dim)
            self.untied = Table(*size, "vocab", dim**-0.5, name="output")
        trunk = Trunk(
            d_model=dim,
            vocab_size=self.vocab_size or 0,
            std=dim**-0.5,
            dropout=self.dropout,
            compute=compute,
        )
        self.head_modules = Heads(self.heads, trunk)
        nn.share_scope(self, self.head_modules)

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Computes the last block's states of each token.

        Args:
          batch: `inputs` and `segment_ids`, each (B, T), beside others. A token sees
            the tokens of its own segment that are not after it.
          train: whether dropout is on; it needs the rng stream "dropout".
        """
        segments = pad(batch["segment_ids"], width=self.width)
        return self._run(batch, None, segments, train)[0]

    def _run(
        self,
        batch: Batch,
        cache: jax.Array | None,
        segments: Int[Array, "B S"],
        train: bool,
    ) -> tuple[Float[Array, "B T D"], jax.Array | None]:
        # The rows of a table for tied outputs are short; states begin with deviation 1.
        x = self._table()[batch["inputs"]] * self.d_model**0.5
        x = x.astype(self.compute.dtype)
        x = constrain(x, self.compute.rules, "batch", "length", None)
        x, cache = self.layers(x, cache, segments, train)
        return self.drop_last(x, train=train), cache

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Returns the vectors of tokens."""
        return self._table()[ids]

    def _table(self) -> Float[Array, "V D"]:
        # If it were sharded over "embed" too, the compiler would copy it for a gather.
        return constrain(self.embed(), self.compute.rules, "vocab", None)

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """Makes a cache without any text, whose size does not depend on the length."""
        before, size = self.width - 1, self.bottleneck or self.d_model
        inputs = (self.num_layers, rows, before, size)
        return {
            "inputs": jnp.zeros(inputs, jnp.dtype(self.compute.dtype)),
            "segment_ids": jnp.zeros((rows, before), jnp.int32),
        }

    def cache_rows(self) -> PyTree:
        """Returns the row axes; all continuations of a prompt have equal segments."""
        return {"inputs": Rows(1, stacked=True), "segment_ids": Rows(shared=True)}

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "B T D"], Cache]:
        """Computes the states of new tokens, and the cache with their last inputs."""
        new = batch["segment_ids"].astype(jnp.int32)
        segments = jnp.concatenate([cache["segment_ids"], new], axis=1)
        hidden, inputs = self._run(batch, cache["inputs"], segments, False)
        assert inputs is not None  # those of the layers, since it got some
        latest = segments[:, 1 - self.width :]
        return hidden, {"inputs": inputs, "segment_ids": latest}

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """Returns the output embeddings, and (hidden, table) -> float32 logits."""
        table = self.untied() if self.output == "untied" else self._table()
        return table, functools.partial(project, precision=self.compute.precision)

    def logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Computes float32 logits of the next token."""
        if any(head.logits for head in self.heads):
            return self.head_modules.logits(hidden, self._table())
        table, logits = self.token_head()
        return logits(hidden, table)

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Computes the output of a head; see `lm.models.blocks.heads.Heads`."""
        return self.head_modules(name, hidden, segment_ids, train=train)

    def touch(self) -> None:
        """Calls every module once, so that `init` creates every parameter."""
        one = jnp.ones((1, 1), jnp.int32)
        hidden = self({"inputs": 0 * one, "segment_ids": one}, train=False)
        if self.heads:
            self.head_modules.touch(hidden, self._table())
        else:
            self.logits(hidden)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs of one update: 3 x 2 x the products of each token."""
        rows, length = batch["inputs"].shape
        inner = self.bottleneck or self.d_model
        block = 2 * self.width * inner**2
        block += 4 * self.d_model * inner if self.bottleneck else 0
        products = length * self.num_layers * block
        if "targets" in batch:
            products += length * self.d_model * (self.vocab_size or 0)
        return 6.0 * rows * products

    def small(self) -> dict[str, Any]:
        """Returns the fields of two narrow blocks of the same kind."""
        changes = {"num_layers": 2, "d_model": 16, "width": min(self.width, 4)}
        return changes | ({"bottleneck": 8} if self.bottleneck else {})

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout; rows may have any length."""
        return {"dropout": 0.0}
