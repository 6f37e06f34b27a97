"""Objectives whose loss touches few rows of large tables: word vectors.

A dense gradient of a table of word vectors is nearly all zeros. An objective of this
kind therefore says which rows of which tables a part of a batch touches, and computes
its loss from these rows alone, so that `lm.updates.rows` can change them and nothing
else. The same loss serves evaluations and `lm.updates.plain`.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lm.data.index import Layout
from lm.data.neighbours import Texts
from lm.objectives import base
from lm.objectives.base import Batch, Terms
from lm.tokenizers.base import Codec

Spans = dict[str, Array]  # A batch cut into spans, on axis 0 of each array.
Touched = dict[str, tuple[str, Int[Array, "..."]]]


@dataclasses.dataclass(frozen=True)
class RowObjective(base.Objective):
    """The base of objectives that touch rows of tables ("rows" in `can`).

    A batch has the array `words` (B,), the words that were read for each row, and a
    last array whose name is `weights`. It is cut into spans, of which an update takes
    a few at a time.

    Attributes:
      column: the column of the source that holds the text.
    """

    column: str = "text"

    can: ClassVar[frozenset[str]] = frozenset({"rows"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tables"})

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        return Texts(seq_len, tuple(sorted(codec.special_ids)), pack, self.column)

    def tokens(self, batch: base.Rows) -> int:
        """Counts the words that were read, those that sub-sampling drops included."""
        return int(batch["words"].sum())

    # ── What a subclass defines ─────────────────────────────────────────────────────

    @abc.abstractmethod
    def spans(self, batch: Batch) -> Spans:
        """Cuts a batch into spans; those whose `weights` are all 0 may be left out."""

    @abc.abstractmethod
    def touched(self, spans: Spans) -> Touched:
        """Names the rows that spans touch: {use: (path of the table, ids)}.

        One table may have several uses, and an id may occur any number of times.
        """

    @abc.abstractmethod
    def terms(self, rows: dict[str, Float[Array, "..."]], spans: Spans) -> Terms:
        """Computes the loss of spans from the rows of each use, of shape ids + (D,)."""

    # ── The contract of an objective ────────────────────────────────────────────────

    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms:
        """Returns the terms of the whole batch; its gradient is that of the tables."""
        tables, spans = model.tables(), self.spans(batch)
        rows = {
            use: tables[path][ids] for use, (path, ids) in self.touched(spans).items()
        }
        return self.terms(rows, spans)


def log_sigmoid_loss(
    scores: Float[Array, "..."], labels: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Computes -log sigmoid(score) where the label is true, else that of -score."""
    return jax.nn.softplus(scores) - labels * scores


def mean_with_whole_gradient(
    rows: Float[Array, "*any K D"], real: Float[Array, "*any K"]
) -> Float[Array, "*any D"]:
    """Computes the mean of the real rows, and gives each the whole gradient of it.

    The published programs do not divide the gradient among the rows of a mean.
    """
    total = jnp.einsum("...kd,...k->...d", rows, real)
    count = jnp.maximum(real.sum(axis=-1, keepdims=True), 1)
    return total + jax.lax.stop_gradient(total / count - total)
