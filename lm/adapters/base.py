"""The contract of an adapter: which parameters it adds to a model, and which train."""

import abc
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from lm.models.base import Model

# What `lm.models.base.Head` says of the parameters of heads.
HEADS = "heads/"


@dataclasses.dataclass(frozen=True)
class Adapter(abc.ABC):
    """The base of every adapter: a class `Adapter` in a file of `lm/adapters`.

    The fields of a subclass are `config.adapter`. The parameters of a run with an
    adapter are of two kinds. It trains, and its checkpoints hold, those that the
    adapter adds, those of heads, and those that `config.init.missing` allows to be new.
    All others are its base: they have no gradient and no state of the optimiser, and
    come from `config.init` whenever the run is opened.

    Attributes:
      freezes: whether a run has a base. The wrapped model then has `reference`, an
        `apply` by the weights of the base alone.
      place: the path under which the parameters of the base lie; "" is their own.
    """

    freezes: ClassVar[bool] = True
    place: ClassVar[str] = ""

    @abc.abstractmethod
    def wrap(self, model: Model, fresh: Iterable[str]) -> Model:
        """Returns the model with the parameters that the adapter adds.

        With the initial values of these it computes what the model computes.

        Args:
          model: without parameters; its vocabulary is known.
          fresh: `config.init.missing`.
        """

    @abc.abstractmethod
    def adds(self, path: str) -> bool:
        """Tells whether the adapter has added a parameter to the model."""

    def trains(self, path: str, fresh: Iterable[str]) -> bool:
        """Tells whether a parameter is trained, and not of the base.

        Args:
          fresh: `config.init.missing`.
        """
        whole = path.startswith(HEADS) or any(re.fullmatch(f, path) for f in fresh)
        return whole or self.adds(path)

    def begin(self, own: Any, added: Any) -> Any:
        """Returns the parameters that it adds to a new run.

        Args:
          own: the model's, with the weights of `config.init`.
          added: those that the model's `init` gives.
        """
        return added

    def merge(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns parameters of the model alone that compute the same.

        Args:
          params: path -> parameter of the model with the adapter.
        """
        return {path: value for path, value in params.items() if not self.adds(path)}

    def factors(
        self, params: Mapping[str, np.ndarray]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns path of a kernel -> its A and B, of an adapter of low rank; else {}.

        Args:
          params: as for `merge`.
        """
        return {}

    def small(self) -> dict[str, Any]:
        """Returns the fields that fit the small model of `lm.verify`."""
        return {}

    def exact(self) -> dict[str, Any]:
        """Returns the fields of an adapter without randomness, for `lm.verify`."""
        return {}
