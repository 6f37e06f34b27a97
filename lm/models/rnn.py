"""A recurrent language model: layers of GRU, LSTM or Elman cells.

See Mikolov et al. 2010, and for dropout between the layers Zaremba et al. 2014. The
model has no positions. Its state has a fixed size, and one batch can pass it to the
next.

    embed/embedding
    layers/{input,recurrent}/{kernel,bias}   (leading axis: layers; kernels (D, G, D))
    output/embedding   pooler   heads/<name>/...
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.models.base import Batch, Compute, Head, Rows, Shapes, Trunk
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import Dense, Dropout, Table, constrain
from lm.ops.dense import project
from lm.ops.recurrence import CELLS, Boundaries, boundaries, recur

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "num_layers": "[1, 4096]",
    "d_model": "[1, 1048576]",
    "dropout": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

State = dict[str, Float[Array, "B L D"]]


class Layer(nn.Module):
    """Computes a recurrent layer; all tokens share one product with the inputs."""

    cell: str
    dim: int
    dropout: float
    init_std: float
    compute: Compute

    def setup(self):
        sizes = (self.dim,), (CELLS[self.cell].gates, self.dim)
        dense = functools.partial(
            Dense, *sizes, ("embed", None, "mlp"), self.init_std, self.compute
        )
        self.input, self.recurrent = dense(), dense()
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: PyTree,
        bounds: Boundaries,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        # Gather a sharded kernel once here, not at every token.
        kernel = constrain(self.recurrent.kernel, self.compute.rules, None, None, None)
        x, state = recur(
            self.cell,
            self.input(self.drop(x, train=train)),
            kernel,
            self.recurrent.bias,
            state,
            bounds,
            precision=self.compute.precision,
        )
        return constrain(x, self.compute.rules, "batch", None, None), state


class Model(nn.Module):
    """A recurrent network over tokens, from left to right.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      cell: of all layers; see lm.ops.recurrence.
      num_layers: number of layers.
      d_model: units of a layer, and size of an embedding.
      dropout: of the inputs of each layer, and of the last layer's outputs.
      output: "tied" is the token embedding, "untied" a table of its own.
      init_std: standard deviation, before truncation at two of them, of each matrix;
        None: d_model ** -0.5.
      heads: the heads that the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    cell: Literal["gru", "lstm", "elman"] = "gru"
    num_layers: int = 2
    d_model: int = 256
    dropout: float = 0.1
    output: Literal["tied", "untied"] = "tied"
    init_std: float | None = None
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        return frozenset({"hidden", "logits", "causal", "extend", "head", "carry"})

    @property
    def reads(self) -> frozenset[str]:
        """Returns that a batch needs inputs, positions and segment_ids only."""
        return frozenset()

    @property
    def context(self) -> None:
        """Returns None: rows may have any length."""

    def setup(self):
        dim, compute = self.d_model, self.compute
        std = self.init_std or dim**-0.5
        self.embed = Table(self.vocab_size, dim, "vocab", std)
        self.layers = nn.scan(
            # The scan saves its matrix products in any case, and nothing else is large.
            nn.remat(Layer, static_argnums=(4,)) if compute.remat == "full" else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(1, nn.broadcast, nn.broadcast),
            out_axes=1,
            length=self.num_layers,
            unroll=compute.unroll or self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.cell, dim, self.dropout, std, compute)
        self.drop_last = Dropout(self.dropout)
        if self.output == "untied":
            self.untied = Table(self.vocab_size, dim, "vocab", std, name="output")
        trunk = Trunk(dim, self.vocab_size, std, self.dropout, compute=compute)
        self.head_modules = Heads(self.heads, trunk)
        nn.share_scope(self, self.head_modules)

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Computes the last layer's state after each token.

        The initial state is that of the collection "carry", if it is given; if the
        collection is mutable, the state after the last token is written to it.

        Args:
          batch: `inputs`, `positions` and `segment_ids`, each (B, T). The state becomes
            zeros where a text begins: at position 0, or at the next segment of a row.
          train: whether dropout is on; it needs the rng stream "dropout".
        """
        state = self.make_carry(len(batch["inputs"]))
        for name in state:
            if self.has_variable("carry", name):
                state[name] = self.get_variable("carry", name)
        hidden, state = self._run(batch, state, train)
        if self.is_mutable_collection("carry") and not self.is_initializing():
            for name, part in state.items():
                self.put_variable("carry", name, part)
        return hidden

    def _run(
        self, batch: Batch, state: State, train: bool
    ) -> tuple[Float[Array, "B T D"], State]:
        x = self._table()[batch["inputs"]].astype(self.compute.dtype)
        x = constrain(x, self.compute.rules, "batch", None, None)
        bounds = boundaries(batch["positions"], batch["segment_ids"])
        x, state = self.layers(x, state, bounds, train)
        return self.drop_last(x, train=train), state

    def _table(self) -> Float[Array, "V D"]:
        # If it were sharded over "embed" too, the compiler would copy it for a gather.
        return constrain(self.embed(), self.compute.rules, "vocab", None)

    def make_carry(self, rows: int) -> State:
        """Makes the state before any text: zeros, float32, layers on axis 1."""
        size = (rows, self.num_layers, self.d_model)
        return {name: jnp.zeros(size, jnp.float32) for name in CELLS[self.cell].parts}

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> State:
        """Makes the state before any text, whose size does not depend on the length."""
        return self.make_carry(rows)

    def cache_rows(self) -> PyTree:
        """Returns that all arrays of a cache have their rows on axis 0."""
        return Rows()

    def extend(self, batch: Batch, cache: State) -> tuple[Float[Array, "B T D"], State]:
        """Computes the states after new tokens; the last one is the cache."""
        return self._run(batch, cache, False)

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
        batch = {"inputs": 0 * one, "positions": 0 * one, "segment_ids": one}
        hidden = self(batch, train=False)
        if self.heads:
            self.head_modules.touch(hidden, self._table())
        else:
            self.logits(hidden)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs of one update: 3 x 2 x the products of each token."""
        rows, length = batch["inputs"].shape
        layer = 2 * CELLS[self.cell].gates * self.d_model**2
        products = length * self.num_layers * layer
        if "targets" in batch:
            products += length * self.d_model * (self.vocab_size or 0)
        return 6.0 * rows * products

    def small(self) -> dict[str, Any]:
        """Returns the fields of two narrow layers."""
        return {"num_layers": 2, "d_model": 16}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout; rows may have any length."""
        return {"dropout": 0.0}
