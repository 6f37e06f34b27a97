"""A recurrent language model: layers of GRU, LSTM or Elman cells.

Mikolov et al. 2010; with dropout between the layers, Zaremba et al. 2014. It has no
positions and a state of fixed size, which a batch can hand to the next.

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
from lm.ops.recurrence import CELLS, Marks, marks, recur

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
    """A recurrent layer; the product with its inputs is made for all tokens at once."""

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
        self, x: Float[Array, "B T D"], state: PyTree, marks: Marks, train: bool
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        # Gathered once here, not at every token.
        kernel = constrain(self.recurrent.kernel, self.compute.rules, None, None, None)
        x, state = recur(
            self.cell,
            self.input(self.drop(x, train=train)),
            kernel,
            self.recurrent.bias,
            state,
            marks,
            precision=self.compute.precision,
        )
        return constrain(x, self.compute.rules, "batch", None, None), state


class Model(nn.Module):
    """A recurrent network over tokens, from left to right.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      cell: of all layers; see lm.ops.recurrence.
      num_layers: one on the other.
      d_model: units of a layer, and size of an embedding.
      dropout: of what enters each layer, and of the last layer's states.
      output: "tied" is the token embedding, "untied" a table of its own.
      init_std: standard deviation, before truncation at two of them, of each matrix;
        None: d_model ** -0.5.
      heads: what the objective needs.
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
        """What it offers (lm.models.base.ABILITIES)."""
        return frozenset({"hidden", "logits", "causal", "extend", "head", "carry"})

    @property
    def reads(self) -> frozenset[str]:
        """Nothing beside inputs, positions and segment_ids."""
        return frozenset()

    @property
    def context(self) -> None:
        """Any number of positions."""

    def setup(self):
        dim, compute = self.d_model, self.compute
        std = self.init_std or dim**-0.5
        self.embed = Table(self.vocab_size, dim, "vocab", std)
        self.layers = nn.scan(
            # Of the gates, the products are all that is worth saving: they are saved.
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
        self.on_top = Heads(self.heads, trunk)
        nn.share_scope(self, self.on_top)

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Gives the last layer's state after each token.

        Begins with the state of the collection "carry" where that is given, and leaves
        there, where it is mutable, the state after the last token.

        Args:
          batch: `inputs`, `positions` and `segment_ids`, each (B, T). A text begins
            with zeros, at position 0 or at the next segment of a row.
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
        places = marks(batch["positions"], batch["segment_ids"])
        x, state = self.layers(x, state, places, train)
        return self.drop_last(x, train=train), state

    def _table(self) -> Float[Array, "V D"]:
        # Were it sharded over embed as well, a gather would make the compiler copy it.
        return constrain(self.embed(), self.compute.rules, "vocab", None)

    def make_carry(self, rows: int) -> State:
        """Makes the state before any text: zeros, float32, layers on axis 1."""
        size = (rows, self.num_layers, self.d_model)
        return {name: jnp.zeros(size, jnp.float32) for name in CELLS[self.cell].parts}

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> State:
        """Makes the state before any text; it has room for any number of tokens."""
        return self.make_carry(rows)

    def cache_rows(self) -> PyTree:
        """Says that all arrays of a cache have their rows on axis 0."""
        return Rows()

    def extend(self, batch: Batch, cache: State) -> tuple[Float[Array, "B T D"], State]:
        """Gives the states after new tokens, and the last of them as the cache."""
        return self._run(batch, cache, False)

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """Gives the output embeddings, and (hidden, table) -> float32 logits."""
        table = self.untied() if self.output == "untied" else self._table()
        return table, functools.partial(project, precision=self.compute.precision)

    def logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Gives float32 logits of the next token."""
        if any(head.logits for head in self.heads):
            return self.on_top.logits(hidden, self._table())
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
        """Gives the output of a head; see `lm.models.blocks.heads.Heads`."""
        return self.on_top(name, hidden, segment_ids, train=train)

    def touch(self) -> None:
        """Goes through every module once, so that `init` makes every parameter."""
        one = jnp.ones((1, 1), jnp.int32)
        batch = {"inputs": 0 * one, "positions": 0 * one, "segment_ids": one}
        hidden = self(batch, train=False)
        if self.heads:
            self.on_top.touch(hidden, self._table())
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
        """Gives two narrow layers."""
        return {"num_layers": 2, "d_model": 16}

    def exact(self, length: int) -> dict[str, Any]:
        """Gives the fields without dropout; there are no positions to make room for."""
        return {"dropout": 0.0}
