"""Low-rank adaptation of dense layers (LoRA; Hu et al. 2022, arXiv:2106.09685).

The output of a dense layer with the frozen kernel W becomes x W + b + s (x A) B, where
A (I, r) and B (r, O) are trained and s is alpha / r. B is zero at the start.

The term is added to the output of each layer, by a Flax interceptor around the model's
`apply`, rather than to its kernel before the model is applied: so dropout acts on the
input of A alone, as in the paper, no gradient of the size of W is ever made, and no
model has to know of it.

For a kernel at `layers/mlp/up/kernel` the parameters are `layers/mlp/up/lora_a/kernel`
and `lora_b/kernel`. They have the kernel's axes and, in a stack, one A and B for each
layer: a kernel (L, D, N, H) has A (L, D, r) and B (L, r, N, H).
"""

import dataclasses
import difflib
import functools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.adapters import base
from lm.errors import ConfigError
from lm.models.base import Model
from lm.models.blocks.layers import Dense, Named
from lm.ops.dense import dense
from lm.ops.dropout import dropout

BOUNDS = {"rank": "[1, 1048576]", "alpha": "(0, inf)", "dropout": "[0, 1)"}

A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class Adapter(base.Adapter):
    """Options of `lora`.

    Attributes:
      kernels: regexes of the whole path of a kernel, without a layer's number. They
        choose among the kernels of dense layers that are frozen otherwise.
      rank: r.
      alpha: the numerator of s.
      dropout: of the input of A, in training.
      scale: s is alpha / r ("standard"), or alpha / sqrt(r) ("rank_stabilised";
        Kalajdzievski 2023, arXiv:2312.03732).
    """

    kernels: tuple[str, ...] = (r"(.*/)?attention/(query|value)/kernel",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scale: Literal["standard", "rank_stabilised"] = "standard"

    @property
    def factor(self) -> float:
        """Returns s."""
        rank = self.rank if self.scale == "standard" else math.sqrt(self.rank)
        return self.alpha / rank

    def wrap(self, model: Model, fresh: Iterable[str]) -> Model:
        """Returns the model with A and B beside the kernels.

        Its `init` raises ConfigError where a regex matches no kernel, or the rank is
        larger than one of its sides.
        """
        adapted: Any = Adapted(model, self, tuple(fresh))  # The rest is the model's.
        return adapted

    def adds(self, path: str) -> bool:
        """Tells whether a path is that of an A or B."""
        return self._is(path, A) or self._is(path, B)

    def _is(self, path: str, which: str) -> bool:
        return path.endswith(f"/{which}/kernel")

    def merge(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the model's own parameters, in which each W is W + s A B."""
        merged = super().merge(params)
        for kernel, (a, b) in self.factors(params).items():
            whole = merged[kernel]
            lead = b.ndim - 1 - (whole.ndim - (a.ndim - 1))
            wide = np.asarray(a, np.float64).reshape(*a.shape[:lead], -1, self.rank)
            high = np.asarray(b, np.float64).reshape(*b.shape[:lead], self.rank, -1)
            change = self.factor * np.matmul(wide, high).reshape(whole.shape)
            merged[kernel] = (whole + change).astype(whole.dtype)
        return merged

    def factors(
        self, params: Mapping[str, np.ndarray]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns path of a kernel -> its A and B."""
        heads = [p.removesuffix(f"{A}/kernel") for p in params if self._is(p, A)]
        return {
            f"{head}kernel": (params[f"{head}{A}/kernel"], params[f"{head}{B}/kernel"])
            for head in heads
        }

    def small(self) -> dict[str, Any]:
        """Returns a rank that any matrix of a small model has."""
        return {"rank": min(self.rank, 4)}

    def exact(self) -> dict[str, Any]:
        """Returns a dropout of 0."""
        return {"dropout": 0.0}


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model with low-rank terms; what is not defined here is the model's own.

    Attributes:
      model: the model without them.
      adapter: their options.
      fresh: regexes of parameters that are trained whole, as heads are.
    """

    model: Any
    adapter: Adapter
    fresh: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def clone(self, **changes: Any) -> "Adapted":
        """Returns a copy in which fields of the model are changed."""
        return dataclasses.replace(self, model=self.model.clone(**changes))

    def flops(self, batch: Any) -> None:
        """Returns None: how many the frozen kernels save depends on the model."""

    def apply(self, variables: Any, *arguments: Any, **keywords: Any) -> Any:
        """Applies the model, as `flax.linen.Module.apply` does."""
        with nn.intercept_methods(self._add):
            return self.model.apply(variables, *arguments, **keywords)

    def reference(self, variables: Any, *arguments: Any, **keywords: Any) -> Any:
        """Applies the model without the low-rank terms."""
        return self.model.apply(variables, *arguments, **keywords)

    def init(self, rngs: Mapping[str, jax.Array], **keywords: Any) -> dict[str, Any]:
        """Returns the model's variables, with an A and a B beside each kernel chosen.

        A is uniform within the square root of 1 / I, as in the authors' program.

        Raises:
          ConfigError: as `Adapter.wrap` says.
        """
        found: dict[str, Sides] = {}
        with nn.intercept_methods(functools.partial(_note, found)):
            variables = self.model.init(rngs, **keywords)
        for path in self._chosen(found):
            node = variables["params"]
            for part in path.split("/"):
                node = node[part]
            key = jax.random.fold_in(rngs["params"], zlib.crc32(path.encode()))
            node |= self._new(path, node["kernel"], found[path], key)
        return variables

    def _add(
        self, call: Callable, arguments: tuple, keywords: dict, context: Any
    ) -> Any:
        """Calls a method of a module; adds the term to the output of a dense layer."""
        found, module = call(*arguments, **keywords), context.module
        if not (_applies(context) and module.has_variable("params", A)):
            return found
        x, key = arguments[0].astype(found.dtype), None
        # Only training gives the rng stream.
        if self.adapter.dropout and module.has_rng("dropout"):
            key = module.make_rng("dropout")
        a, b = (module.get_variable("params", name)["kernel"] for name in (A, B))
        precision = _sides(module).precision

        x = dropout(x, rate=self.adapter.dropout, key=key)
        inner = dense(x, a, contract=a.ndim - 1, precision=precision)
        return found + self.adapter.factor * dense(inner, b, precision=precision)

    def _chosen(self, layers: Iterable[str]) -> list[str]:
        """Returns the dense layers whose kernel a regex matches, in their order."""
        trains = functools.partial(self.adapter.trains, fresh=self.fresh)
        kernels = [f"{path}/kernel" for path in layers]
        kernels = [path for path in kernels if not trains(path)]
        found = set()
        for number, pattern in enumerate(self.adapter.kernels):
            where = f"adapter.kernels[{number}]"
            try:
                hits = {path for path in kernels if re.fullmatch(pattern, path)}
            except re.error as error:
                raise ConfigError(where, f"{pattern!r} ({error})", "a regex") from None
            if not hits:
                near = difflib.get_close_matches(pattern, kernels, n=3, cutoff=0.0)
                raise ConfigError(
                    where,
                    f"{pattern!r}, which matches no frozen kernel of a dense layer",
                    f"a regex of a whole path, such as {' or '.join(near)}"
                    if near
                    else "a model with such kernels",
                )
            found |= hits
        if not found:
            raise ConfigError("adapter.kernels", "none", "a regex of kernels or more")
        return [path.removesuffix("/kernel") for path in kernels if path in found]

    def _new(
        self, path: str, box: Any, sides: "Sides", key: jax.Array
    ) -> dict[str, Any]:
        """Makes the A and B of a layer, with the logical names of their axes."""
        kernel, rank = nn.meta.unbox(box), self.adapter.rank
        names = getattr(box, "axes", None) or getattr(box, "names", None)
        axes = tuple(names or [None] * kernel.ndim)
        middle = kernel.ndim - sides.outputs
        lead = middle - sides.inputs
        wide = math.prod(kernel.shape[lead:middle])
        most = min(wide, math.prod(kernel.shape[middle:]))
        if rank > most:
            found = f"{rank}, larger than a side of {path}/kernel"
            raise ConfigError("adapter.rank", found, f"at most {most}")
        shape, bound = (*kernel.shape[:middle], rank), wide**-0.5
        a = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        b = jnp.zeros((*kernel.shape[:lead], rank, *kernel.shape[middle:]), jnp.float32)
        after = (*axes[:lead], None, *axes[middle:])
        return {
            A: {"kernel": Named(a, (*axes[:middle], None))},
            B: {"kernel": Named(b, after)},
        }


class Sides(NamedTuple):
    """How a dense layer multiplies by its kernel.

    Attributes:
      inputs, outputs: how many axes of the kernel are inputs and outputs; those before,
        in a stack, are layers.
      precision: of the product.
    """

    inputs: int
    outputs: int
    precision: Any


def _sides(module: Dense | nn.Dense) -> Sides:
    if isinstance(module, Dense):
        count = len(module.inputs), len(module.outputs)
        return Sides(*count, module.compute.precision)
    return Sides(1, 1, module.precision)


def _applies(context: Any) -> bool:
    """Tells whether an intercepted call is that of a dense layer, ours or Flax's."""
    dense_layer = isinstance(context.module, Dense | nn.Dense)
    return dense_layer and context.method_name == "__call__"


def _note(
    found: dict[str, Sides],
    call: Callable,
    arguments: tuple,
    keywords: dict,
    context: Any,
) -> Any:
    """Calls a method of a module, and notes the path of a dense layer."""
    if _applies(context):
        found["/".join(context.module.scope.path)] = _sides(context.module)
    return call(*arguments, **keywords)
