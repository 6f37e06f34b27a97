"""The contract of a model: what it can do, and the methods that each ability promises.

A model is a file of this folder (or a module of your own, named with dots) with a class
`Model`, a Flax Linen module that uses `setup`. Its fields are the options of
`config.model`, beside three that every run fills in:

    vocab_size: int | None = None       from the tokenizer, where the config has none
    compute: Compute = Compute()        dtype, layout over the mesh, from config.compute
    heads: tuple[Head, ...] = ()        the heads that the objective needs

Other parts look at `can` and `reads` of a model, never at its name or other fields. The
axes of a parameter may have logical names (`lm.models.blocks.layers.named`), by which
the mesh shards it; every device has the whole of a parameter without names.
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
Row = Literal["first", "last", "max", "mean"] | None
Pooler = Literal["tanh", "relu"] | None

# The words of `can`, each with what a model that has it is able to do.
ABILITIES = {
    "hidden": "give the hidden state of each token",
    "logits": "give logits over the vocabulary",
    "score": "give the probability of a token without those of all others",
    "causal": "predict the next token: each state depends on no later token",
    "whole": "see the whole text at each token, in both directions",
    "prefix": "see a prefix as a whole, and the rest from left to right",
    "beyond": "go on past its `context`, as with rotary or relative positions",
    "encode": "encode a source apart from the text that it predicts",
    "extend": "continue a text from a cache",
    "head": "put an objective's heads on its hidden states",
    "carry": "carry its state from one batch to the next",
    "parse": "find the trees of sentences",
    "tags": "score sequences of tags",
    "fit": "be fitted by passes over the data, without gradients",
    "layers": "give the states after each of its layers",
    "embeds": "give the vector of a token apart from any text",
    "tables": "give its tables of vectors, of which an update changes a few rows",
    "counts": "keep how often each token occurs in the training rows",
}


@runtime_checkable
class Model(Protocol):
    """What every model has.

    Attributes:
      can: words of ABILITIES; each promises the methods of a protocol below.
        logits: `Predicts`. score: `Scores`. hidden: `States`, and with logits
        `Sequence`. head: `Headed`. extend: `Decodes`. encode: `Encodes`. carry:
        `Carries`. layers: `Layered`. fit: `Fitted`. embeds: `Embeds`. tables: `Tables`.
        counts: `Counted`. The others promise how states are computed.
      reads: the keys of a batch that it needs beside `inputs`, `positions` and
        `segment_ids`, such as `token_types` or an encoder's `source_inputs`.
      context: the longest row and prompt in tokens; None: any length. With "beyond" an
        answer may continue past it.
    """

    # Every Flax module has these two.
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
        """Calls every module once, so that `init` creates every parameter."""

    def flops(self, batch: Shapes) -> float | None:
        """Counts the FLOPs that one update of the batch needs, without recomputation.

        It uses shapes only and is called on a model without parameters. None means
        unknown; no utilisation (MFU) is then reported.
        """

    def small(self) -> dict[str, Any]:
        """Returns the fields of a small and quick model of the same kind.

        It is for `lm.verify`. The keys are dotted paths within config.model, such as
        "num_layers" or "attention.window". {}: the model is small enough.
        """

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields, as `small`, of a model without randomness.

        It is for `lm.verify`: no dropout, and positions for rows of `length` tokens.
        """


@runtime_checkable
class Predicts(Model, Protocol):
    """A model with "logits"; its hidden states may be of any type."""

    def __call__(self, batch: Batch, *, train: bool) -> Shaped[Array, "B T D"]:
        """Computes for each token the state that `logits` needs.

        Tokens see only tokens of their own segment. Padding, segment 0, does not change
        the states of others; its own are finite and meaningless.
        """

    def logits(self, hidden: Shaped[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Computes float32 logits of the next token, or of the masked token itself."""


@runtime_checkable
class Scores(Predicts, Protocol):
    """A model with "score": its logits are log-probabilities, each cheap by itself."""

    def log_prob(
        self, hidden: Shaped[Array, "*any D"], targets: Int[Array, "*any"]
    ) -> Float[Array, "*any"]:
        """Computes the log-probability of one token for each state, in nats."""

    def best(self, hidden: Shaped[Array, "*any D"]) -> Int[Array, "*any"]:
        """Finds the most probable token after each state."""


@runtime_checkable
class States(Model, Protocol):
    """A model with "hidden": its states are vectors."""

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Computes the state of each token, as `Predicts` does."""


@runtime_checkable
class Sequence(States, Predicts, Protocol):
    """A model with "hidden" and "logits": it has `token_head`."""

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]: ...

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """Returns the output embeddings and (hidden, table) -> float32 logits.

        Losses use it to project a chunk of tokens at a time.
        """


@runtime_checkable
class Headed(States, Protocol):
    """A model with "head"."""

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Computes the output of a head, float32.

        A model makes `lm.models.blocks.heads.Heads` from its `heads` and calls that.
        """


@runtime_checkable
class Decodes(Predicts, Protocol):
    """A model with "extend": it continues a text token by token."""

    def make_cache(self, rows: int, length: int, source_length: int) -> PyTree:
        """Makes an empty cache for `length` tokens and a source in each row.

        It is called on a model without parameters.
        """

    def extend(
        self, batch: Batch, cache: PyTree
    ) -> tuple[Shaped[Array, "B T D"], PyTree]:
        """Returns the states of tokens that follow those of the cache, and the cache.

        Padding, segment 0, may come before a prompt. In a model that encodes, the batch
        of the first call has the source (`source_inputs`, ...).
        """

    def cache_rows(self) -> PyTree:
        """Returns for each array of a cache where its rows are.

        The result is a prefix of the cache's tree: `Rows()` alone if all arrays have
        their rows on axis 0.
        """


@runtime_checkable
class Encodes(Sequence, Protocol):
    """A model with "encode"."""

    def encode(self, batch: Batch, *, train: bool) -> Float[Array, "B S D"]:
        """Computes the states of `source_inputs`."""


@runtime_checkable
class Carries(Sequence, Protocol):
    """A model with "carry": its states depend on earlier batches.

    The carried state is a Flax collection of variables, "carry":

        hidden, left = model.apply(
            {"params": params, "carry": carry}, batch, train=True, mutable=["carry"]
        )
        carry = left["carry"]

    Without the collection the state is zeros at the start of a row. It becomes zeros
    before every token whose `positions` is 0, where a text begins; padding does not
    change it. The same holds for rows that are packed, unpacked or continued.
    """

    def make_carry(self, rows: int) -> PyTree:
        """Makes the state before any text, rows on axis 0.

        It is called on a model without parameters.
        """


@runtime_checkable
class Layered(States, Protocol):
    """A model with "layers".

    A call for which the collection "intermediates" is mutable keeps them there.
    """

    def layer_states(self, variables: PyTree) -> Float[Array, "N B T D"]:
        """Returns the embeddings, and the states after each layer.

        It is called on a model without parameters.

        Args:
          variables: the collections that such a call has returned.
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
      statistics_on: "device": `statistics` is compiled, its batch is global and on the
        devices, and the statistics of batches are added leaf by leaf. "host": it
        computes in numpy from this process's rows, and `merge` combines two results,
        also those of other processes; their arrays may have any size.
    """

    @property
    def statistics_on(self) -> Literal["device", "host"]: ...

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Returns the parameters before the first pass, and the memory.

        Args:
          corpus: of lm.run, with the tokenizer (`codec`) and the rows (`stream`).
        """

    def statistics(self, params: PyTree, batch: Shapes) -> PyTree:
        """Computes the sufficient statistics of a batch, as a tree of arrays.

        Rows whose weights are 0 pad the last batch and do not count.
        """

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        """Combines two statistics; only a model on the host needs it."""

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Returns parameters and memory after a pass, and measurements by name.

        Args:
          memory: what the model keeps from pass to pass beside its parameters, such as
            the history of L-BFGS; {} if nothing.
          statistics: of all batches of all processes.
        """


@runtime_checkable
class Embeds(Model, Protocol):
    """A model with "embeds".

    Attributes:
      vectors_at: the path of the parameter whose rows are the vectors of tokens.
    """

    @property
    def vectors_at(self) -> str: ...

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Returns the vectors of tokens: rows of that parameter."""


@runtime_checkable
class Tables(Model, Protocol):
    """A model with "tables": all its parameters that are trained are such tables."""

    def tables(self) -> dict[str, Float[Array, "rows *D"]]:
        """Returns the tables by the paths of their parameters."""


@runtime_checkable
class Counted(Model, Protocol):
    """A model with "counts"."""

    def counted(self, params: PyTree, counts: Int[np.ndarray, "V"]) -> PyTree:
        """Returns new parameters that hold the counts of the tokens.

        It is called on a model without parameters.
        """


@dataclasses.dataclass(frozen=True)
class Rows:
    """Describes the rows, one for each text, of an array of a cache.

    Attributes:
      axis: of the rows; None: the array has no rows, such as a count of tokens.
      stacked: whether axis 0 has an entry for each layer. Decoding then keeps an array
        for each layer, since a loop over tokens would copy the stack at every token.
      shared: whether all continuations of a prompt have equal rows, such as the keys of
        a source. Beam search then does not reorder them.
    """

    axis: int | None = 0
    stacked: bool = False
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Compute:
    """config.compute: how a model is computed; no parameter depends on it.

    Attributes:
      dtype: of activations and matrix products; norms, softmax and logits are float32.
      unroll: layers per iteration of the scan over layers; 0 unrolls all of them.
      remat: what the backward pass recomputes: nothing ("none"); all but the matrix
        products ("dots"), which also saves time where memory is slow (a tenth of a step
        on CPU); or all of a layer but its input ("full").
      attention: the kernel, a file of lm/ops/attention: "cudnn" for NVIDIA GPUs,
        "splash" for TPUs, "xla" for all devices. With a cache it is always "xla".
      precision: of float32 matrix products on accelerators that have several.
      rules: logical axis name -> mesh axes, from config.mesh; () shards nothing.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "dots"
    attention: str = "xla"
    precision: Literal["default", "high", "highest"] = "default"
    rules: Rules = ()


@dataclasses.dataclass(frozen=True)
class Trunk:
    """The fields of a model that its heads need.

    Attributes:
      d_model: size of a hidden state.
      vocab_size: rows of the table of token embeddings.
      std: standard deviation of a new matrix with d_model inputs.
      bidirectional: whether the first token sees the whole text.
      activation, norm, norm_epsilon, use_bias: as in the model's own layers.
    """

    d_model: int
    vocab_size: int
    std: float
    dropout: float = 0.0
    bidirectional: bool = False
    activation: str = "gelu"
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    use_bias: bool = True
    compute: Compute = Compute()


@dataclasses.dataclass(frozen=True)
class Head:
    """A module that an objective needs on a model's hidden states.

    Attributes:
      name: its parameters are heads/<name>.
      module: (trunk, name=...) -> a Flax module, called with hidden states. It returns
        an array or a tree of arrays, which may contain parameters of its own (the
        transitions of a CRF, a temperature), and `model.head` returns the same. The
        usual one: `functools.partial(lm.models.blocks.heads.Linear, outputs=2)`.
      row: None: the module gets the states of all tokens (B, T, D); "first" or "last":
        those of each row's first token, or of its last that is not padding (B, D).
        "max" or "mean": the largest value, or the mean, of each number over the tokens
        of a row that are not padding (B, D).
      pooler: the function after a dense layer `pooler`, shared by all heads, that the
        states pass before the module (Devlin et al. 2019); None: no such layer.
      logits: whether `model.logits` uses this head instead of the output embeddings.
        The module is then called with hidden states and the token embeddings.
    """

    name: str
    module: Callable[..., nn.Module]
    row: Row = None
    pooler: Pooler = None
    logits: bool = False


def check_can(model: Model, needs: Iterable[str], asker: str) -> None:
    """Refuses a model that lacks an ability.

    Args:
      asker: what needs it, such as "objective mlm", for the error.

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
