"""The contract of an objective: both sides of a task, on the host and on the device."""

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Array, Float

from lm.data.index import Index, Layout
from lm.models.base import Head

Batch = dict[str, Array]
Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]  # {term: (sum, count)}


class Objective(Protocol):
    """A frozen dataclass, its fields are `config.objective`.

    On the host, `layout` says what a row is (made once, cached), `transforms` how a row
    becomes an example. On the device, with `model` bound to its parameters, `loss`
    returns for each term the sum over places and their count; `counts` gives the same
    counts from the batch alone, so that an update can first total them over
    micro-batches and devices. The loss is the sum over terms of sum / count, a term
    without places contributing 0.
    """

    def heads(self) -> tuple[Head, ...]: ...

    def layout(self, codec: Any, *, seq_len: int, pack: bool) -> Layout: ...

    def transforms(
        self, index: Index, codec: Any, *, seq_len: int
    ) -> tuple[Callable, ...]: ...

    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms: ...

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]: ...

    def metrics(self, model: Any, batch: Batch) -> Terms:
        """What the evaluator `mean` averages: the loss's terms and accuracies."""

    def predict(self, model: Any, batch: Batch) -> dict[str, Array]:
        """Predictions of a batch, for the evaluators that look at each example."""
