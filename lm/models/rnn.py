"""A recurrent network: layers of GRU, LSTM or Elman cells.

See Mikolov et al. 2010, and for dropout between the layers Zaremba et al. 2014. The
model has no positions. From left to right it is a language model; its state has a fixed
size, and one batch can pass it to the next. In both directions (Schuster and Paliwal
1997) it reads whole texts, for a classifier or a tagger.

    embed/embedding
    layers/{input,recurrent}/{kernel,bias}   (leading axis: layers; kernels (D, G, D))
    layers/{backward_input,backward_recurrent}/{kernel,bias}
    output/embedding   pooler   heads/<name>/...
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import ConfigError
from lm.models.base import Batch, Compute, Head, Rows, Shapes, Trunk
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import Dense, Dropout, Table, constrain
from lm.ops.dense import project
from lm.ops.recurrence import CELLS, Boundaries, backward, boundaries, recur

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
    """Computes a recurrent layer; all tokens share one product with the inputs.

    In both directions each has half of the units.
    """

    cell: str
    dim: int
    dropout: float
    init_std: float
    bidirectional: bool
    compute: Compute

    def setup(self):
        units = self.dim // 2 if self.bidirectional else self.dim

        def dense(inputs: int) -> Dense:
            axes, sizes = ("embed", None, "mlp"), (CELLS[self.cell].gates, units)
            return Dense((inputs,), sizes, axes, self.init_std, self.compute)

        self.input, self.recurrent = dense(self.dim), dense(units)
        if self.bidirectional:
            self.backward_input, self.backward_recurrent = dense(self.dim), dense(units)
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: PyTree,
        bounds: Boundaries,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        x = self.drop(x, train=train)
        if self.bidirectional:
            one, other = (
                {name: halves(part)[n] for name, part in state.items()}
                for n in range(2)
            )
            there, _ = self._recur(self.input, self.recurrent, x, one, bounds)
            parts = self.backward_input, self.backward_recurrent
            turned = jnp.flip(x, axis=1)
            back, _ = self._recur(*parts, turned, other, backward(bounds))
            x = jnp.concatenate([there, jnp.flip(back, axis=1)], axis=-1)
        else:
            x, state = self._recur(self.input, self.recurrent, x, state, bounds)
        return constrain(x, self.compute.rules, "batch", None, None), state

    def _recur(
        self, into: Dense, recurrent: Dense, x: jax.Array, state: PyTree, bounds: Any
    ) -> tuple[jax.Array, PyTree]:
        # Gather a sharded kernel once here, not at every token.
        kernel = constrain(recurrent.kernel, self.compute.rules, None, None, None)
        options = {"precision": self.compute.precision}
        bias = recurrent.bias
        return recur(self.cell, into(x), kernel, bias, state, bounds, **options)


def halves(x: Float[Array, "*any D"]) -> list[jax.Array]:
    """Splits states into those of the two directions."""
    return jnp.split(x, 2, axis=-1)


class Model(nn.Module):
    """A recurrent network over tokens, from left to right or in both directions.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      cell: of all layers; see lm.ops.recurrence.
      num_layers: number of layers.
      d_model: units of a layer, and size of an embedding.
      bidirectional: whether half of a layer's units read each text from its end to its
        start. Such a model predicts no next token and carries no state.
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
    bidirectional: bool = False
    dropout: float = 0.1
    output: Literal["tied", "untied"] = "tied"
    init_std: float | None = None
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        if not self.bidirectional:
            return frozenset({"hidden", "logits", "causal", "extend", "head", "carry"})
        masked = {"logits"} if any(head.logits for head in self.heads) else set()
        return frozenset({"hidden", "head", "whole", *masked})

    @property
    def reads(self) -> frozenset[str]:
        """Returns that a batch needs inputs, positions and segment_ids only."""
        return frozenset()

    @property
    def context(self) -> None:
        """Returns None: rows may have any length."""

    def __post_init__(self):
        super().__post_init__()
        if self.bidirectional and self.d_model % 2:
            expected = "an even number, half of it for each direction"
            raise ConfigError("model.d_model", str(self.d_model), expected)

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
        )(self.cell, dim, self.dropout, std, self.bidirectional, compute)
        self.drop_last = Dropout(self.dropout)
        if self.output == "untied":
            self.untied = Table(self.vocab_size, dim, "vocab", std, name="output")
        self.head_modules = Heads(self.heads, self._trunk(std))
        nn.share_scope(self, self.head_modules)

    def _trunk(self, std: float) -> Trunk:
        return Trunk(
            d_model=self.d_model,
            vocab_size=self.vocab_size or 0,
            std=std,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            compute=self.compute,
        )

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
        """Computes the output of a head; see `lm.models.blocks.heads.Heads`.

        A head on the last token reads in both directions the state of each after its
        last token, which is the first of the text for one of them.
        """
        module = next(head for head in self.heads if head.name == name)
        if self.bidirectional and module.row == "last":
            assert segment_ids is not None  # without them no token is the last
            there, back = halves(hidden)
            first = jnp.argmax(segment_ids != 0, axis=1)[:, None, None]
            back = jnp.take_along_axis(back, first, axis=1)
            back = jnp.broadcast_to(back, there.shape)
            hidden = jnp.concatenate([there, back], axis=-1)
        return self.head_modules(name, hidden, segment_ids, train=train)

    def touch(self) -> None:
        """Calls every module once, so that `init` creates every parameter."""
        one = jnp.ones((1, 1), jnp.int32)
        batch = {"inputs": 0 * one, "positions": 0 * one, "segment_ids": one}
        hidden = self(batch, train=False)
        if self.heads:
            self.head_modules.touch(hidden, self._table())
        elif "logits" in self.can:
            self.logits(hidden)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs of one update: 3 x 2 x the products of each token."""
        rows, length = batch["inputs"].shape
        # In both directions each state is multiplied with a quarter of the kernel.
        kernels = 1.5 if self.bidirectional else 2.0
        layer = kernels * CELLS[self.cell].gates * self.d_model**2
        products = length * self.num_layers * layer
        if "target_positions" in batch:
            targets = batch["target_positions"].shape[1]
            products += targets * self.d_model * ((self.vocab_size or 0) + self.d_model)
        elif "targets" in batch:
            products += length * self.d_model * (self.vocab_size or 0)
        return 6.0 * rows * products

    def small(self) -> dict[str, Any]:
        """Returns the fields of two narrow layers."""
        return {"num_layers": 2, "d_model": 16}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout; rows may have any length."""
        return {"dropout": 0.0}
