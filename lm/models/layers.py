"""Layers of Transformers: thin Flax modules over lm.ops.

Parameters are float32 and carry the names of their logical axes; `Compute` says how
they are computed with. Every module is told `train` by its caller.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from lm.ops.activations import activate
from lm.ops.attention import attend
from lm.ops.dense import dense
from lm.ops.dropout import dropout
from lm.ops.norms import layer_norm

# Logical axis name -> mesh axis, several mesh axes, or None (replicated).
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

BOUNDS = {"unroll": "[0, inf)"}
CHANGEABLE = ("dtype", "unroll", "remat", "attention", "precision")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed; nothing here changes a parameter's name or shape.

    Attributes:
      dtype: of activations and matrix products; norms, softmax and logits are float32.
      unroll: layers per iteration of the scan over layers; 0 unrolls all of them.
      remat: what the backward pass recomputes: nothing; all but the matrix products,
        which also saves time where memory is slow (a tenth of a step on CPU); or all of
        a layer but its input.
      attention: the implementation; each must honour segment masks.
      precision: of float32 matrix products on accelerators that have several.
      rules: logical axis name -> mesh axes, from config.mesh; () constrains nothing.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "dots"
    attention: Literal["xla"] = "xla"
    precision: Literal["default", "high", "highest"] = "default"
    rules: Rules = ()


@struct.dataclass
class Named(nn.meta.AxisMetadata):
    """A parameter with the logical names of its axes; exists only during init."""

    value: Any
    axes: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        axes = (*self.axes[:index], params[nn.PARTITION_NAME], *self.axes[index:])
        return self.replace(axes=axes)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Named":
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])


def named(initializer: Callable, *axes: str | None) -> Callable:
    """The initializer, giving its array with the logical names of its axes."""
    return lambda key, shape: Named(initializer(key, shape, jnp.float32), axes)


def constrain(x: jax.Array, rules: Rules, *axes: str | None) -> jax.Array:
    """Lays x out over the mesh by the logical names of its axes.

    Does nothing without rules or outside `jax.set_mesh`. An axis whose size the mesh
    does not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not rules or mesh.empty:
        return x
    table = dict(rules)
    spec = []
    for size, name in zip(x.shape, axes, strict=True):
        over = table[name] if name is not None else None
        over = (over,) if isinstance(over, str) else (over or ())
        parts = 1
        for axis in over:
            parts *= mesh.shape[axis]
        spec.append(over if size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


class Dense(nn.Module):
    """kernel (*inputs, *outputs) and bias (*outputs)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]
    init_std: float
    compute: Compute

    def setup(self):
        init = nn.initializers.truncated_normal(self.init_std)
        count = len(self.inputs)
        self.kernel = self.param(
            "kernel", named(init, *self.axes), self.inputs + self.outputs
        )
        self.bias = self.param(
            "bias", named(nn.initializers.zeros, *self.axes[count:]), self.outputs
        )

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return dense(
            x,
            self.kernel,
            self.bias,
            contract=len(self.inputs),
            precision=self.compute.precision,
        )


class LayerNorm(nn.Module):
    dim: int
    epsilon: float

    def setup(self):
        self.scale = self.param(
            "scale", named(nn.initializers.ones, "embed"), (self.dim,)
        )
        self.bias = self.param(
            "bias", named(nn.initializers.zeros, "embed"), (self.dim,)
        )

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        return layer_norm(x, self.scale, self.bias, epsilon=self.epsilon)


class Table(nn.Module):
    """An embedding table (rows, D); called, it gives the table."""

    rows: int
    dim: int
    axis: str | None
    init_std: float

    def setup(self):
        init = nn.initializers.truncated_normal(self.init_std)
        self.embedding = self.param(
            "embedding", named(init, self.axis, "embed"), (self.rows, self.dim)
        )

    def __call__(self) -> Float[Array, "V D"]:
        return self.embedding


class Dropout(nn.Module):
    rate: float

    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        if not train or self.rate == 0.0:
            return x
        return dropout(x, rate=self.rate, key=self.make_rng("dropout"))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2)."""

    d_model: int
    num_heads: int
    head_dim: int
    dropout: float
    init_std: float
    compute: Compute

    def setup(self):
        model, heads = (self.d_model,), (self.num_heads, self.head_dim)
        names = ("embed", "heads", "head_dim")
        common = {"init_std": self.init_std, "compute": self.compute}
        self.query = Dense(model, heads, names, **common)
        self.key = Dense(model, heads, names, **common)
        self.value = Dense(model, heads, names, **common)
        self.output = Dense(heads, model, ("heads", "head_dim", "embed"), **common)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 T S"], *, train: bool
    ) -> Float[Array, "B T D"]:
        drop = train and self.dropout > 0.0
        attended = attend(
            self.query(x),
            self.key(x),
            self.value(x),
            mask=mask,
            dropout_rate=self.dropout,
            dropout_key=self.make_rng("dropout") if drop else None,
            precision=self.compute.precision,
        )
        return self.output(attended)


class FeedForward(nn.Module):
    """Two dense layers with an activation between (Vaswani et al. 2017, 3.3)."""

    d_model: int
    d_ff: int
    activation: str
    init_std: float
    compute: Compute

    def setup(self):
        common = {"init_std": self.init_std, "compute": self.compute}
        self.up = Dense((self.d_model,), (self.d_ff,), ("embed", "mlp"), **common)
        self.down = Dense((self.d_ff,), (self.d_model,), ("mlp", "embed"), **common)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = activate(self.up(x), self.activation)
        hidden = constrain(hidden, self.compute.rules, "batch", "length", "mlp")
        return self.down(hidden)
