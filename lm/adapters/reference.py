"""Beside all weights, which are trained, those that the run began with.

An objective compares the model with them, such as `dpo`. They take as much memory as
the weights once more; under `lora` the frozen base is the reference, at no cost.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lm.adapters import base
from lm.models.base import Model

NAME = "reference"


@dataclasses.dataclass(frozen=True)
class Adapter(base.Adapter):
    """Keeps a frozen copy of the weights, under "reference/"."""

    place: ClassVar[str] = NAME

    def wrap(self, model: Model, fresh: Iterable[str]) -> Model:
        """Returns the model with a second set of its parameters."""
        twice: Any = Referred(model)  # The rest is the model's.
        return twice

    def adds(self, path: str) -> bool:
        """Tells whether a path is that of the copy."""
        return path.startswith(f"{NAME}/")

    def trains(self, path: str, fresh: Iterable[str]) -> bool:
        """Tells whether a path is not that of the copy."""
        return not self.adds(path)

    def begin(self, own: Any, added: Any) -> Any:
        """Returns a copy of the model's own parameters."""
        return {NAME: jax.tree.map(jnp.copy, own)}


@dataclasses.dataclass(frozen=True)
class Referred:
    """A model with a frozen copy of its parameters, which it does not use itself.

    Attributes:
      model: without the copy.
    """

    model: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def clone(self, **changes: Any) -> "Referred":
        """Returns a copy in which fields of the model are changed."""
        return dataclasses.replace(self, model=self.model.clone(**changes))

    def flops(self, batch: Any) -> None:
        """Returns None: the reference computes too, but nothing of the gradient."""

    def init(self, rngs: Mapping[str, jax.Array], **keywords: Any) -> dict[str, Any]:
        """Returns the model's variables, with its parameters twice."""
        variables = self.model.init(rngs, **keywords)
        params = variables.get("params", {})
        return variables | {"params": params | {NAME: params}}

    def apply(self, variables: Any, *arguments: Any, **keywords: Any) -> Any:
        """Applies the model, as `flax.linen.Module.apply` does."""
        params = variables.get("params", {})
        own = {name: value for name, value in params.items() if name != NAME}
        return self.model.apply(variables | {"params": own}, *arguments, **keywords)

    def reference(self, variables: Any, *arguments: Any, **keywords: Any) -> Any:
        """Applies the model with the copy."""
        params = variables["params"][NAME]
        return self.model.apply(variables | {"params": params}, *arguments, **keywords)
