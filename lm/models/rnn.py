"""A recurrent network: layers of GRU, LSTM or Elman cells.

See Mikolov et al. 2010, for dropout between the layers Zaremba et al. 2014, and for its
other kinds Merity et al. 2018 (AWD-LSTM). The model has no positions. From left to
right it is a language model; its state has a fixed size, and one batch can pass it to
the next. In both directions (Schuster and Paliwal 1997) it reads whole texts, for a
classifier or a tagger.

    embed/embedding
    layers/{input,recurrent}/{kernel,bias}   (leading axis: layers; kernels (D, G, D))
    characters/{byte,filter,output}/...
    layers/{backward_input,backward_recurrent}/{kernel,bias}
    output/embedding   pooler   heads/<name>/...

With `d_embed` the first layer, and where the output is tied the last, have other sizes
than those between. They are `first/...` and `last/...`, without a leading axis.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import ConfigError
from lm.models.base import Batch, Compute, Head, Rows, Shapes, Trunk
from lm.models.blocks.characters import Characters
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import Dropout, Table, constrain
from lm.models.blocks.recurrent import Layer, Shape, halves
from lm.ops.dense import project
from lm.ops.dropout import word_dropout
from lm.ops.recurrence import CELLS, boundaries

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "num_layers": "[1, 4096]",
    "d_model": "[1, 1048576]",
    "d_embed": "[1, 1048576]",
    "characters": "[0, 65536]",
    "dropout": "[0, 1)",
    "dropout_input": "[0, 1)",
    "dropout_output": "[0, 1)",
    "dropout_word": "[0, 1)",
    "dropout_weight": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

State = dict[str, Array]


class Model(nn.Module):
    """A recurrent network over tokens, from left to right or in both directions.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      cell: of all layers; see lm.ops.recurrence.
      num_layers: number of layers.
      d_model: units of a layer.
      d_embed: size of an embedding; None is d_model. Where the output is tied, the last
        layer has as many units.
      bidirectional: whether half of a layer's units read each text from its end to its
        start. Such a model predicts no next token and carries no state.
      characters: filters over the bytes of each word, whose largest values are a part
        of its embedding (Ma and Hovy 2016); 0: none. The objective gives the bytes.
      dropout: of the inputs of each layer, and of the last layer's outputs.
      dropout_input: of the first layer's inputs; None is `dropout`.
      dropout_output: of the last layer's outputs; None is `dropout`.
      dropout_word: probability with which a word is an embedding of zeros wherever it
        stands in the batch.
      dropout_weight: of the kernels of the recurrence, with one mask for all tokens of
        the batch (Wan et al. 2013).
      locked: whether dropout has one mask for all positions of a row (Gal and
        Ghahramani 2016).
      output: "tied" is the token embedding, "untied" a table of its own.
      init_std: standard deviation, before truncation at two of them, of each matrix;
        None: d_model ** -0.5, and d_embed ** -0.5 for embeddings of another size.
      heads: the heads that the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    cell: Literal["gru", "lstm", "elman", "elman_relu"] = "gru"
    num_layers: int = 2
    d_model: int = 256
    d_embed: int | None = None
    bidirectional: bool = False
    characters: int = 0
    dropout: float = 0.1
    dropout_input: float | None = None
    dropout_output: float | None = None
    dropout_word: float = 0.0
    dropout_weight: float = 0.0
    locked: bool = False
    output: Literal["tied", "untied"] = "tied"
    init_std: float | None = None
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    vectors_at: ClassVar[str] = "embed/embedding"

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        if not self.bidirectional:
            return frozenset(
                {"embeds", "hidden", "logits", "causal", "extend", "head", "carry"}
            )
        masked = {"logits"} if any(head.logits for head in self.heads) else set()
        return frozenset({"embeds", "hidden", "head", "whole", *masked})

    @property
    def reads(self) -> frozenset[str]:
        """Returns the keys of a batch beside inputs, positions and segment_ids."""
        return frozenset({"characters"} if self.characters else ())

    @property
    def context(self) -> None:
        """Returns None: rows may have any length."""

    def __post_init__(self):
        super().__post_init__()
        if self.bidirectional and self.d_model % 2:
            expected = "an even number, half of it for each direction"
            raise ConfigError("model.d_model", str(self.d_model), expected)
        if self.bidirectional and self.d_embed and self.d_embed % 2 and self._tied:
            expected = "an even number, half of it for each direction"
            raise ConfigError("model.d_embed", str(self.d_embed), expected)
        if self._stacked < 0:
            found = f"1 with d_embed={self.d_embed} and a tied output"
            expected = "at least 2: the first and the last have sizes of their own"
            raise ConfigError("model.num_layers", found, expected)

    @property
    def _tied(self) -> bool:
        return self.output == "tied"

    @property
    def _width(self) -> int:
        """The size of a hidden state."""
        return self.d_embed if self.d_embed and self._tied else self.d_model

    @property
    def _ends(self) -> dict[str, tuple[int, int]]:
        """The layers outside the stack: their names -> (inputs, units)."""
        if self.d_embed is None:
            return {}
        ends = {"first": (self.d_embed, self.d_model)}
        return ends | ({"last": (self.d_model, self.d_embed)} if self._tied else {})

    @property
    def _stacked(self) -> int:
        """The number of layers in the stack."""
        return self.num_layers - len(self._ends)

    def setup(self):
        dim, compute = self.d_model, self.compute
        std = self.init_std or dim**-0.5
        embedded = self.d_embed or dim
        table_std = self.init_std or embedded**-0.5
        self.embed = Table(self.vocab_size, embedded, "vocab", table_std)
        first, last = (
            self.dropout if rate is None else rate
            for rate in (self.dropout_input, self.dropout_output)
        )
        self.drop_first = Dropout(first, self.locked)
        self.drop_last = Dropout(last, self.locked)
        regular = self.locked, self.dropout_weight
        shape = Shape(self.cell, self.bidirectional, *regular, std, compute)
        if "first" in self._ends:
            self.first = Layer(shape, *self._ends["first"], first)
        if "last" in self._ends:
            self.last = Layer(shape, *self._ends["last"], self.dropout)
        if self.characters:
            self.spelling = Characters(
                self.characters, embedded, std, compute, name="characters"
            )
        self.layers = nn.scan(
            # The scan saves its matrix products in any case, and nothing else is large.
            nn.remat(Layer, static_argnums=(5,)) if compute.remat == "full" else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(1, 0, nn.broadcast, nn.broadcast),
            out_axes=1,
            length=self._stacked,
            unroll=compute.unroll or self._stacked,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(shape, dim, dim, self.dropout)
        if not self._tied:
            self.untied = Table(self.vocab_size, dim, "vocab", std, name="output")
        self.head_modules = Heads(self.heads, self._trunk(std))
        nn.share_scope(self, self.head_modules)

    def _trunk(self, std: float) -> Trunk:
        return Trunk(
            d_model=self._width,
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
        table = self._table()
        x = table[batch["inputs"]].astype(self.compute.dtype)
        x = constrain(x, self.compute.rules, "batch", None, None)
        if train and self.dropout_word:
            rate, key = self.dropout_word, self.make_rng("dropout")
            x = word_dropout(x, batch["inputs"], len(table), rate=rate, key=key)
        if self.characters:
            x += self.spelling(batch["characters"])
        bounds = boundaries(batch["positions"], batch["segment_ids"])
        parts, after = CELLS[self.cell].parts, {}

        def end(name: str, x: jax.Array) -> jax.Array:
            if name not in self._ends:
                return x
            own = {part: state[f"{name}_{part}"] for part in parts}
            x, own = getattr(self, name)(x, own, None, bounds, train)
            after.update({f"{name}_{part}": array for part, array in own.items()})
            return x

        x = end("first", x)
        if self._stacked:
            dropped = None
            if not self._ends and self.dropout_input is not None:
                x = self.drop_first(x, train=train)
                dropped = jnp.arange(self._stacked) == 0
            own = {part: state[part] for part in parts}
            x, own = self.layers(x, own, dropped, bounds, train)
            after |= own
        return self.drop_last(end("last", x), train=train), after

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Returns the vectors of tokens."""
        return self._table()[ids]

    def _table(self) -> Float[Array, "V D"]:
        # If it were sharded over "embed" too, the compiler would copy it for a gather.
        return constrain(self.embed(), self.compute.rules, "vocab", None)

    def make_carry(self, rows: int) -> State:
        """Makes the state before any text: zeros, float32, stacked layers on axis 1."""
        sizes: dict[str, tuple[int, ...]] = {}
        for part in CELLS[self.cell].parts:
            for name, (_, units) in self._ends.items():
                sizes[f"{name}_{part}"] = rows, units
            if self._stacked:
                sizes[part] = rows, self._stacked, self.d_model
        return {name: jnp.zeros(size, jnp.float32) for name, size in sizes.items()}

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
        table = self._table() if self._tied else self.untied()
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
        batch |= {"characters": one[..., None]}
        hidden = self(batch, train=False)
        if self.heads:
            self.head_modules.touch(hidden, self._table())
        elif "logits" in self.can:
            self.logits(hidden)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs of one update: 3 x 2 x the products of each token."""
        rows, length = batch["inputs"].shape
        # In both directions each state is multiplied with a quarter of the kernel.
        share = 0.5 if self.bidirectional else 1.0
        sizes = [*self._ends.values(), *[(self.d_model,) * 2] * self._stacked]
        layers = sum((inputs + share * units) * units for inputs, units in sizes)
        products = length * CELLS[self.cell].gates * layers
        vocab, width = self.vocab_size or 0, self._width
        if "target_positions" in batch:
            products += batch["target_positions"].shape[1] * width * (vocab + width)
        elif "targets" in batch:
            products += length * width * vocab
        return 6.0 * rows * products

    def small(self) -> dict[str, Any]:
        """Returns the fields of two narrow layers."""
        return {"num_layers": 2, "d_model": 16, "d_embed": self.d_embed and 8}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout; rows may have any length."""
        rates = "dropout", "dropout_word", "dropout_weight"
        ends = {
            "dropout_input": self.dropout_input and 0.0,
            "dropout_output": self.dropout_output and 0.0,
        }
        return dict.fromkeys(rates, 0.0) | ends
