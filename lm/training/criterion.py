"""What an update minimises: the objective's loss, alone or beside a teacher's."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lm.training import passes
from lm.training.passes import Batch, Terms
from lm.updates.base import Rows


@runtime_checkable
class Criterion(Protocol):
    """A loss of rows, as `make_training` asks for it."""

    @property
    def model(self) -> Any:
        """Returns the module that is trained."""

    @property
    def params(self) -> PyTree:
        """Returns the shapes of parameters that it reads and no update changes."""

    def of(self, model: Any) -> Self:
        """Returns the same loss for another module of the same parameters."""

    def start(self, key: Array) -> PyTree:
        """Makes parameters of its own, which train beside the model's."""

    def counts(self, batch: Batch) -> dict[str, Array]:
        """Counts what each term is a mean over."""

    def terms(
        self, params: PyTree, still: PyTree, rows: Rows, rngs: dict[str, Array]
    ) -> tuple[Terms, PyTree]:
        """Returns the terms, as (sum, count), and the state that the model carries on.

        Args:
          params: the model's, and those of `start`.
          still: the values of `params`.
        """

    def total(self, means: dict[str, Array]) -> Array:
        """Adds up the means of the terms."""


class Plain(NamedTuple):
    """The loss of an objective.

    Attributes:
      model: the module.
      objective: of lm/objectives.
      params: it reads none but the model's.
    """

    model: Any
    objective: Any
    # The default is never changed.
    params: PyTree = {}  # noqa: RUF012

    def of(self, model: Any) -> "Plain":
        """Returns the same loss for another module of the same parameters."""
        return self._replace(model=model)

    def start(self, key: Array) -> PyTree:
        """Makes no parameters."""
        del key
        return {}

    def counts(self, batch: Batch) -> dict[str, Array]:
        """Counts what each term is a mean over."""
        return self.objective.counts(batch)

    def terms(
        self, params: PyTree, still: PyTree, rows: Rows, rngs: dict[str, Array]
    ) -> tuple[Terms, PyTree]:
        """Returns the objective's terms, and the state that the model carries on."""
        del still
        rows = passes.referred(self.model, self.objective, params, rows)

        def loss(model: Any, batch: Batch) -> Terms:
            return self.objective.loss(model, batch, train=True)

        return apply(self.model, params, rows, loss, rngs=rngs)

    def total(self, means: dict[str, Array]) -> Array:
        """Adds up the means of the terms."""
        return jnp.asarray(sum(means.values()))


def apply(
    model: Any, params: PyTree, rows: Rows, method: Callable, **keywords: Any
) -> tuple[Any, PyTree]:
    """Applies a function of (bound model, batch) to rows.

    Args:
      keywords: of the model's `apply`.

    Returns:
      What the function returns, and the model's state after the rows: {} where they
      carry none.
    """
    found, left = applied(model, params, rows, method, **keywords)
    return found, left.get("carry", {})


def applied(
    model: Any,
    params: PyTree,
    rows: Rows,
    method: Callable,
    keep: tuple[str, ...] = (),
    **keywords: Any,
) -> tuple[Any, PyTree]:
    """Does what `apply` does; returns the collections of variables too.

    Args:
      keep: collections beside the carried state.
    """
    carry = {"carry": rows.carried} if rows.carried else {}
    return model.apply(
        {"params": params} | carry,
        rows.batch,
        method=method,
        mutable=[*carry, *keep],
        **keywords,
    )
