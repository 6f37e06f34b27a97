"""Layers of Transformers: thin Flax modules over lm.ops.

Parameters are float32 and have named logical axes; `Compute` says how to compute with
them. Every module gets `train` as an argument.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lm.models.base import Compute, Rules
from lm.ops.activations import GATES, activate
from lm.ops.attention.dense import Request, TokenLayout
from lm.ops.attention.kernels import attend_by
from lm.ops.dense import dense
from lm.ops.dropout import dropout, locked_dropout
from lm.ops.norms import layer_norm, rms_norm
from lm.ops.positions import rotate

BOUNDS = {
    "head_dim": "[1, 65536]",
    "kv_heads": "[1, 65536]",
    "scale": "(0, inf)",
    "softcap": "(0, inf)",
    "window": "[1, 16777216]",
    "dropout": "[0, 1)",
    "buckets": "[4, 65536]",
    "max_distance": "[2, 16777216]",
    "base": "(1, inf)",
    "factor": "[1, inf)",
    "low": "(0, inf)",
    "high": "(0, inf)",
    "original_len": "[1, 16777216]",
}


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """config.model.attention: options of all attention layers of a model.

    Attributes:
      head_dim: None is d_model / num_heads.
      kv_heads: number of key and value heads; None is num_heads. If there are fewer,
        groups of query heads share them (Ainslie et al. 2023).
      scale: of the scores; None is head_dim ** -0.5.
      query_key_norm: an RMS norm on each head's queries and keys (Henry et al. 2020).
      softcap: bounds the scores by tanh.
      window: how many positions a token sees, its own included; None is all.
      dropout: of the attention probabilities.
      buckets, max_distance: of position="relative".
    """

    head_dim: int | None = None
    kv_heads: int | None = None
    scale: float | None = None
    query_key_norm: bool = False
    softcap: float | None = None
    window: int | None = None
    dropout: float = 0.1
    buckets: int = 32
    max_distance: int = 128


@dataclasses.dataclass(frozen=True)
class RopeOptions:
    """config.model.rope, for position="rope"; see lm.ops.positions.rotary_frequencies.

    Attributes:
      base: theta.
      scaling: how frequencies change for a longer context.
      factor: how much longer the context is.
      low, high, original_len: of scaling="llama3".
    """

    base: float = 10000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_len: int = 8192


@dataclasses.dataclass(frozen=True)
class Shape:
    """The options that all layers of a model share; see lm.models.transformer.Model.

    Attributes:
      residual_scale: multiplies the deviation of matrices that end a residual branch.
    """

    d_model: int
    num_heads: int
    d_ff: int
    position: str
    norm: str
    norm_position: str
    norm_epsilon: float
    activation: str
    bias: str
    dropout: float
    init_std: float | None
    residual_scale: float
    attention: AttentionOptions
    rope: RopeOptions
    compute: Compute

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.num_heads

    def std(self, fan_in: int) -> float:
        """Returns the standard deviation of a new matrix."""
        return fan_in**-0.5 if self.init_std is None else self.init_std


@struct.dataclass
class Context:
    """What all layers of a stack share in a call, beside the activations.

    Attributes:
      query, key: layouts of the tokens of this call, and of all tokens that they attend
        to.
      bias: (#B, N, T, S) added to the scores of self-attention.
      rotary: cosines and sines of the rotary embedding of this call's tokens.
      slot: index in the cache of this call's first token.
      encoded: (B, S, D) states of the encoder; None once their keys are in the cache.
      source: layout of the encoder's tokens.
    """

    query: TokenLayout
    key: TokenLayout
    bias: jax.Array | None = None
    rotary: jax.Array | None = None
    slot: Int[Array, ""] | None = None
    encoded: jax.Array | None = None
    source: TokenLayout | None = None


@struct.dataclass
class Named(nn.meta.AxisMetadata):
    """A parameter with the logical names of its axes; it exists only during init."""

    value: Any
    axes: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return Named(val, self.axes)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        axes = (*self.axes[:index], params[nn.PARTITION_NAME], *self.axes[index:])
        return Named(self.value, axes)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        return Named(self.value, self.axes[:index] + self.axes[index + 1 :])


def named(initializer: Callable, *axes: str | None) -> Callable:
    """Wraps an initializer so that its array has the logical names of its axes."""
    return lambda key, shape: Named(initializer(key, shape, jnp.float32), axes)


def constrain(x: jax.Array, rules: Rules, *axes: str | None) -> jax.Array:
    """Shards x over the mesh by the logical names of its axes.

    It does nothing without rules or outside `jax.set_mesh`. An axis whose size the mesh
    does not divide stays whole.
    """
    spec = partition(x.shape, rules, *axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def partition(
    shape: tuple[int, ...], rules: Rules, *axes: str | None
) -> PartitionSpec | None:
    """Returns how `constrain` shards an array; None where it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if not rules or mesh.empty:
        return None
    table = dict(reversed(rules))  # The first rule of a name counts.
    spec = []
    for size, name in zip(shape, axes, strict=True):
        over = table[name] if name is not None else None
        over = (over,) if isinstance(over, str) else (over or ())
        parts = 1
        for axis in over:
            parts *= mesh.shape[axis]
        spec.append(over if size % parts == 0 else None)
    return PartitionSpec(*spec)


def rematerialised(
    layer: type[nn.Module], compute: Compute, *, static: tuple[int, ...]
) -> type[nn.Module]:
    """Makes the backward pass of a layer recompute what `compute.remat` says.

    Args:
      layer: the module of a scan over layers.
      static: the places of its arguments that are no arrays; the first after self is 1.
    """
    if compute.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    keeps = {"dots": policies.dots_saveable, "full": policies.nothing_saveable}
    return nn.remat(
        layer,
        policy=keeps[compute.remat],
        # The compiler can merge recomputed values only across unrolled layers.
        prevent_cse=compute.unroll != 1,
        static_argnums=static,
    )


class Dense(nn.Module):
    """Applies a dense layer: kernel (*inputs, *outputs), and bias (*outputs) if any."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]
    init_std: float
    compute: Compute
    use_bias: bool = True

    def setup(self):
        init = nn.initializers.truncated_normal(self.init_std)
        count = len(self.inputs)
        self.kernel = self.param(
            "kernel", named(init, *self.axes), self.inputs + self.outputs
        )
        zeros = named(nn.initializers.zeros, *self.axes[count:])
        self.bias = self.param("bias", zeros, self.outputs) if self.use_bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return dense(
            x,
            self.kernel,
            self.bias,
            contract=len(self.inputs),
            precision=self.compute.precision,
        )


class Norm(nn.Module):
    """Normalises the last axis by layer or RMS norm."""

    dim: int
    kind: str
    epsilon: float
    use_bias: bool = True
    axis: str | None = "embed"

    def setup(self):
        ones = named(nn.initializers.ones, self.axis)
        self.scale = self.param("scale", ones, (self.dim,))
        if self.kind == "layer" and self.use_bias:
            zeros = named(nn.initializers.zeros, self.axis)
            self.bias = self.param("bias", zeros, (self.dim,))
        else:
            self.bias = None

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        if self.kind == "rms":
            return rms_norm(x, self.scale, epsilon=self.epsilon)
        return layer_norm(x, self.scale, self.bias, epsilon=self.epsilon)


def shape_norm(shape: Shape) -> Norm:
    """Makes the norm that the model's fields describe."""
    use_bias = shape.bias == "all"
    return Norm(shape.d_model, shape.norm, shape.norm_epsilon, use_bias)


class Table(nn.Module):
    """Contains an embedding table (rows, D), which a call returns."""

    rows: int
    dim: int
    axis: str | None
    init_std: float
    dim_axis: str | None = "embed"

    def setup(self):
        init = nn.initializers.truncated_normal(self.init_std)
        self.embedding = self.param(
            "embedding", named(init, self.axis, self.dim_axis), (self.rows, self.dim)
        )

    def __call__(self) -> Float[Array, "V D"]:
        return self.embedding


class Dropout(nn.Module):
    """Applies dropout in training, from the rng stream "dropout".

    Attributes:
      locked: whether all positions of a row (B, T, D) share a mask.
    """

    rate: float
    locked: bool = False

    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        if not train or self.rate == 0.0:
            return x
        drop = locked_dropout if self.locked else dropout
        return drop(x, rate=self.rate, key=self.make_rng("dropout"))


class Attention(nn.Module):
    """Computes multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Tokens attend to each other (`causal` or not) or, with `cross`, to the states of an
    encoder.
    """

    shape: Shape
    causal: bool
    cross: bool = False

    def setup(self):
        shape = self.shape
        dim, heads = (shape.d_model,), (shape.num_heads, shape.head_dim)
        kv_heads = (shape.kv_heads, shape.head_dim)
        names = ("embed", "heads", "head_dim")
        compute, std = shape.compute, shape.std(shape.d_model)
        use_bias = shape.bias in ("all", "attention", "qkv")
        # Where scores are not scaled, the queries are (Raffel et al. 2020).
        query_std = std * shape.head_dim**-0.5 if self._unscaled else std
        self.query = Dense(dim, heads, names, query_std, compute, use_bias)
        self.key = Dense(dim, kv_heads, names, std, compute, use_bias)
        self.value = Dense(dim, kv_heads, names, std, compute, use_bias)
        self.output = Dense(
            heads,
            dim,
            ("heads", "head_dim", "embed"),
            shape.std(shape.num_heads * shape.head_dim) * shape.residual_scale,
            compute,
            shape.bias in ("all", "attention"),
        )
        if shape.attention.query_key_norm:
            norm = (shape.head_dim, "rms", shape.norm_epsilon, False, None)
            self.query_norm, self.key_norm = Norm(*norm), Norm(*norm)

    @property
    def _unscaled(self) -> bool:
        return self.shape.init_std is None and self.shape.attention.scale == 1.0

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: dict[str, jax.Array] | None,
        context: Context,
        *,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], dict[str, jax.Array] | None]:
        """Returns the attended states, and the cache with the new keys and values.

        Args:
          cache: `key` and `value` (B, K, S, H) of this layer, or None.
        """
        options = self.shape.attention
        query = self.query(x)
        if options.query_key_norm:
            query = self.query_norm(query)
        if context.rotary is not None and not self.cross:
            query = rotate(query, context.rotary)
        if self.cross and context.encoded is None:
            assert cache is not None  # it has those of the source
            key, value = (jnp.swapaxes(cache[n], 1, 2) for n in ("key", "value"))
        else:
            key, value, cache = self._project(x, cache, context)
        compute = self.shape.compute
        drop = train and options.dropout > 0.0
        keys = context.source if self.cross else context.key
        assert keys is not None
        request = Request(
            layouts=(context.query, keys),
            # Every token of the decoder sees the whole document of the encoder.
            causal=self.causal and not self.cross,
            window=None if self.cross else options.window,
            bias=None if self.cross else context.bias,
            scale=options.scale,
            softcap=options.softcap,
            dropout_rate=options.dropout,
            dropout_key=self.make_rng("dropout") if drop else None,
            precision=compute.precision,
            spec=partition(key.shape, compute.rules, "batch", None, "heads", None),
        )
        attended = attend_by(
            compute.attention if cache is None else "xla",
            query,
            key.astype(query.dtype),
            value.astype(query.dtype),
            request,
        )
        return self.output(attended), cache

    def _project(self, x: jax.Array, cache: dict | None, context: Context) -> tuple:
        """Returns keys and values of cached and new tokens, and the cache."""
        given = context.encoded if self.cross else x
        key, value = self.key(given), self.value(given)
        if self.shape.attention.query_key_norm:
            key = self.key_norm(key)
        if context.rotary is not None and not self.cross:
            key = rotate(key, context.rotary)
        if cache is None:
            return key, value, None
        slot = 0 if self.cross else context.slot
        assert slot is not None
        cache = {
            name: jax.lax.dynamic_update_slice_in_dim(
                cache[name], jnp.swapaxes(new, 1, 2).astype(cache[name].dtype), slot, 2
            )
            for name, new in (("key", key), ("value", value))
        }
        return *(jnp.swapaxes(cache[name], 1, 2) for name in ("key", "value")), cache


class FeedForward(nn.Module):
    """Computes two dense layers with an activation between (Vaswani et al. 2017, 3.3).

    In a gated unit (Shazeer 2020) the activation of a third dense layer, `gate`,
    multiplies the output of `up`.
    """

    shape: Shape

    def setup(self):
        shape, dim, wide = self.shape, (self.shape.d_model,), (self.shape.d_ff,)
        use_bias = shape.bias in ("all", "mlp")
        into = (shape.std(shape.d_model), shape.compute, use_bias)
        self.up = Dense(dim, wide, ("embed", "mlp"), *into)
        if shape.activation in GATES:
            self.gate = Dense(dim, wide, ("embed", "mlp"), *into)
        std = shape.std(shape.d_ff) * shape.residual_scale
        self.down = Dense(wide, dim, ("mlp", "embed"), std, shape.compute, use_bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        activation, rules = self.shape.activation, self.shape.compute.rules
        if activation in GATES:
            hidden = activate(self.gate(x), activation) * self.up(x)
        else:
            hidden = activate(self.up(x), activation)
        return self.down(constrain(hidden, rules, "batch", "length", "mlp"))
