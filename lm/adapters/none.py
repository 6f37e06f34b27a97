"""No adapter: every parameter is the run's own."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from lm.adapters import base
from lm.models.base import Model


@dataclasses.dataclass(frozen=True)
class Adapter(base.Adapter):
    """Leaves a model as it is; what is frozen then is up to `optim.freeze`."""

    freezes: ClassVar[bool] = False

    def wrap(self, model: Model, fresh: Iterable[str]) -> Model:
        """Returns the model."""
        return model

    def adds(self, path: str) -> bool:
        """Returns false."""
        return False

    def trains(self, path: str, fresh: Iterable[str]) -> bool:
        """Returns true."""
        return True
