"""The contract of a model: what it can do, and the methods that each ability promises.

A model is a file of this folder (or a module of your own, named with dots) with a class
`Model`, a Flax Linen module that uses `setup`. Its fields are the options of
`config.model`, beside three that every run fills in:

    vocab_size: int | None = None       from the tokenizer, where the config has none
    compute: Compute = Compute()        dtype, layout over the mesh, from config.compute
    heads: tuple[Head, ...] = ()        what the objective asks for

Everything else asks the model by `can` and `reads`, never by its name or fields. A
parameter may carry the logical names of its axes (`lm.models.blocks.layers.named`), by
which the mesh shards it; one without names lies whole on every device.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from lm.errors import ConfigError

BOUNDS = {"unroll": "[0, 4096]"}
CHANGEABLE = ("dtype", "unroll", "remat", "attention", "precision")
WORDS = {"attention": "ops.attention.*:LIMITS"}

Batch = Mapping[str, jax.Array]
Shapes = Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct]
# Logical axis name -> mesh axis, several mesh axes, or None (replicated).
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# Where a head reads a row, and what its state goes through first: see `Head`.
Row = Literal["first", "last"] | None
Pooler = Literal["tanh", "relu"] | None

# The words of `can`, and what a model that has one is able to do.
ABILITIES = {
    "hidden": "give the hidden state of each token",
    "logits": "give logits over the vocabulary",
    "causal": "predict the next token: each state depends on no later token",
    "whole": "see the whole text at each token, in both directions",
    "prefix": "see a prefix as a whole, and the rest from left to right",
    "beyond": "go on past its `context`, as with rotary or relative positions",
    "encode": "encode a source apart from the text that it predicts",
    "extend": "continue a text from a cache",
    "head": "put an objective's heads on its hidden states",
    "carry": "carry its state from one batch to the next",
    "fit": "be fitted by passes over the data, without gradients",
}


@runtime_checkable
class Model(Protocol):
    """Every model, whatever it computes.

    Attributes:
      can: words of ABILITIES; each promises the methods of a protocol below.
        logits: `Predicts`. hidden: `Sequence`. head: `Headed`. extend: `Decodes`.
        encode: `Encodes`. carry: `Carries`. fit: `Fitted`. The others promise how
        states are computed.
      reads: keys of a batch that it cannot do without, beside `inputs`, `positions`
        and `segment_ids`: `token_types`, or an encoder's `source_inputs`.
      context: how many positions it has; None: any number. Rows and prompts are at most
        so long; with "beyond" an answer may run on past it.
    """

    # Flax's own, of every module.
    apply: Callable[..., Any]
    clone: Callable[..., Any]

    @property
    def vocab_size(self) -> int | None: ...

    @property
    def compute(self) -> "Compute": ...

    @property
    def can(self) -> frozenset[str]: ...

    @property
    def reads(self) -> frozenset[str]: ...

    @property
    def context(self) -> int | None: ...

    def touch(self) -> None:
        """Goes through every module once, so that `init` makes every parameter."""

    def flops(self, batch: Shapes) -> float | None:
        """Counts the FLOPs that one update of the batch needs.

        Recomputation aside, from shapes alone. Called on a model without parameters.
        None: unknown, and no utilisation (MFU) is reported.
        """

    def small(self) -> dict[str, Any]:
        """Gives the fields that make it small and quick but the same in kind.

        For `lm.verify`: dotted paths within config.model, such as "num_layers" or
        "attention.window". {}: it is small enough.
        """

    def exact(self, length: int) -> dict[str, Any]:
        """Gives the fields with which it computes without noise, as `small` does.

        For `lm.verify`: no dropout, and positions for rows of `length` tokens.
        """


@runtime_checkable
class Predicts(Model, Protocol):
    """A model with "logits", whatever its hidden states are (of counts, a row)."""

    def __call__(self, batch: Batch, *, train: bool) -> Shaped[Array, "B T D"]:
        """Gives for each token what `logits` is computed from.

        Tokens see only tokens of their own segment. Padding, segment 0, changes
        nothing; its states are finite and mean nothing.
        """

    def logits(self, hidden: Shaped[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Gives float32 logits of the next token, or, of a masked one, of itself."""


@runtime_checkable
class Sequence(Predicts, Protocol):
    """A model with "hidden": it gives a vector for each token, and `token_head`."""

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]: ...

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """Gives the table of output embeddings and (hidden, table) -> float32 logits.

        For losses that project a chunk of tokens at a time.
        """


@runtime_checkable
class Headed(Sequence, Protocol):
    """A model with "head"."""

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Gives what the head of that name makes of the hidden states, float32.

        A model builds `lm.models.blocks.heads.Heads` from its `heads` and hands over.
        """


@runtime_checkable
class Decodes(Predicts, Protocol):
    """A model with "extend": it continues a text token by token."""

    def make_cache(self, rows: int, length: int, source_length: int) -> PyTree:
        """Makes an empty cache with room for `length` tokens and a source, in each row.

        Called on a model without parameters.
        """

    def extend(
        self, batch: Batch, cache: PyTree
    ) -> tuple[Shaped[Array, "B T D"], PyTree]:
        """Gives hidden states of new tokens after those of the cache, and the cache.

        A prompt's padding, segment 0, may stand before it, and then holds no token. The
        first call of a model that encodes brings the source (`source_inputs`, ...).
        """

    def cache_rows(self) -> PyTree:
        """Says by `Rows` where each array of a cache has its rows.

        A prefix of the cache's tree: `Rows()` alone where all have them on axis 0.
        """


@runtime_checkable
class Encodes(Sequence, Protocol):
    """A model with "encode"."""

    def encode(self, batch: Batch, *, train: bool) -> Float[Array, "B S D"]:
        """Gives the states of `source_inputs`."""


@runtime_checkable
class Carries(Sequence, Protocol):
    """A model with "carry": its states depend on earlier batches.

    The state is a Flax collection of variables, "carry":

        hidden, left = model.apply(
            {"params": params, "carry": carry}, batch, train=True, mutable=["carry"]
        )
        carry = left["carry"]

    Without the collection the state is zeros at the start of a row. It becomes zeros
    before every token whose `positions` is 0, for a text begins there; padding leaves
    it as it is. So rows that are packed, or not, or continued need nothing else.
    """

    def make_carry(self, rows: int) -> PyTree:
        """Makes the state of that many rows before any text, rows on axis 0.

        Called on a model without parameters.
        """


@runtime_checkable
class Fitted(Model, Protocol):
    """A model with "fit": parameters from sufficient statistics (`lm/fit.py`).

    Counts need one pass over the data; expectation maximisation, and full-batch methods
    such as L-BFGS, whose statistics are a value and a gradient, need several. These
    methods are called on a model without parameters, which are their argument. The
    number and the shapes of parameters may change from pass to pass; they and the
    memory are dictionaries of arrays, which a checkpoint keeps.

    Attributes:
      statistics_on: "device": `statistics` is compiled, its batch is global and lies on
        the devices, and the statistics of batches are added leaf by leaf. "host": it
        works in numpy on this process's rows, and `merge` puts two results together,
        also those of other processes; their arrays may be of any size.
    """

    @property
    def statistics_on(self) -> Literal["device", "host"]: ...

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Gives the parameters before the first pass, and the memory.

        Args:
          corpus: of lm.run, with the tokenizer (`codec`) and the rows (`stream`).
        """

    def statistics(self, params: PyTree, batch: Shapes) -> PyTree:
        """Gives the sufficient statistics of a batch, as a tree of arrays.

        Rows whose weights are 0 fill up the last batch and count for nothing.
        """

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        """Gives the statistics of both; only asked of a model on the host."""

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Gives parameters and memory after a pass, and measurements by name.

        Args:
          memory: what the model keeps beside its parameters from pass to pass, such as
            the history of L-BFGS; {} where it keeps nothing.
          statistics: of all batches of all processes.
        """


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where an array of a cache has its rows; one entry for each text.

    Attributes:
      axis: of the rows; None: it has none, such as a count of tokens.
      stacked: whether axis 0 has an entry for each layer. Decoding then keeps one array
        a layer, since a loop over tokens would copy the whole stack at every token.
      shared: whether it is equal for all continuations of a prompt, such as the keys of
        a source. A search then leaves it where it is.
    """

    axis: int | None = 0
    stacked: bool = False
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Compute:
    """config.compute: how a model is computed. No parameter depends on it.

    Attributes:
      dtype: of activations and matrix products; norms, softmax and logits are float32.
      unroll: layers per iteration of the scan over layers; 0 unrolls all of them.
      remat: what the backward pass recomputes: nothing; all but the matrix products,
        which also saves time where memory is slow (a tenth of a step on CPU); or all of
        a layer but its input.
      attention: the kernel, a file of lm/ops/attention: "cudnn" for NVIDIA GPUs,
        "splash" for TPUs, "xla" for all and everything. With a cache always "xla".
      precision: of float32 matrix products on accelerators that have several.
      rules: logical axis name -> mesh axes, from config.mesh; () constrains nothing.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "dots"
    attention: str = "xla"
    precision: Literal["default", "high", "highest"] = "default"
    rules: Rules = ()


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What a head knows of the model that it stands on.

    Attributes:
      d_model: size of a hidden state.
      vocab_size: rows of the table of token embeddings.
      std: standard deviation of a new matrix with d_model inputs.
      whole: whether the first token sees the whole text.
      activation, norm, norm_epsilon, use_bias: as in the model's own layers.
    """

    d_model: int
    vocab_size: int
    std: float
    dropout: float = 0.0
    whole: bool = False
    activation: str = "gelu"
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    use_bias: bool = True
    compute: Compute = Compute()


@dataclasses.dataclass(frozen=True)
class Head:
    """What an objective asks of a model beside hidden states.

    Attributes:
      name: its parameters are heads/<name>.
      module: (trunk, name=...) -> a Flax module, called with hidden states. What that
        gives, an array or a tree of arrays, `model.head` gives; so one with parameters
        of its own (the transitions of a CRF, a temperature) may give them too. The
        usual one: `functools.partial(lm.models.blocks.heads.Linear, outputs=2)`.
      row: None: the module gets the states of all tokens (B, T, D); "first" or "last":
        those of each row's first token, or last that is no padding (B, D).
      pooler: the state goes through the dense layer `pooler`, which all heads share,
        and this function first (Devlin et al. 2019).
      logits: whether `model.logits` is this head's, instead of the output table's. The
        module is then called with hidden states and the table of token embeddings.
    """

    name: str
    module: Callable[..., nn.Module]
    row: Row = None
    pooler: Pooler = None
    logits: bool = False


def check_can(model: Model, needs: Iterable[str], asker: str) -> None:
    """Refuses a model that lacks an ability.

    Args:
      asker: what needs it, for the error: "objective mlm".

    Raises:
      ConfigError: names the first ability that is missing.
    """
    for word in sorted(needs):
        if word not in model.can:
            raise ConfigError(
                "model.name",
                f"a model that cannot {ABILITIES.get(word, word)} ({word!r})",
                f"one that can, for {asker}",
                f"this one has {', '.join(sorted(model.can)) or 'no ability'}",
            )
