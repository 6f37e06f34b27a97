"""Causal language modelling: predicts each token from those before it (GPT, Llama).

Bengio et al. 2003; Radford et al. 2019.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm.data import scoring, transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.scoring import Scored, Settings, Text
from lm.data.transforms import Example
from lm.data.windows import (
    Contiguous,
    NextInStream,
    NextToken,
    Windows,
    measure_of,
)
from lm.errors import ConfigError
from lm.models.base import Predicts, Sequence
from lm.objectives.base import Batch, Lesson, Terms
from lm.objectives.teacher_forcing import TeacherForcing, end_of, judge
from lm.ops import losses
from lm.tokenizers.base import Codec

BOUNDS = {
    "stride": "[1, 16777216]",
    "activation": "[0, inf)",
    "slowness": "[0, inf)",
}


@dataclasses.dataclass(frozen=True)
class Objective(TeacherForcing):
    """Options of `causal_lm`; a row has `seq_len` input tokens.

    Attributes:
      column: the column of the source that holds the text.
      bos, eos: whether a text begins with the tokenizer's bos token and ends with its
        eos token, if it has them. Without bos the first token is not predicted.
      stride: distance in tokens between the starts of two windows of a text; None is
        `seq_len`. Smaller values are for evaluations (evals.<name>.objective.stride):
        each target then has at least seq_len - stride tokens before it, except at the
        beginning of a text.
      borders: what happens at the end of a text. "row": its row ends, or with data.pack
        its segment. Otherwise all texts are concatenated and cut every `seq_len`
        tokens, as data.order="stream" requires. "reset": each text is a segment, its
        positions begin at 0 (where a carried state is zeroed), and its first token is
        no target. "ignore": a row is one segment, and the first token of a text is
        predicted from the end of the text before.
      activation: factor of the mean square of the hidden states, which is added to the
        loss of training (Merity et al. 2017, Revisiting activation regularization).
      slowness: factor of the mean square of the difference of the states of neighbours.
        Both are of the states after dropout, so that with dropout of rate p and locked
        masks `slowness` stands for 1 / (1 - p) times its value of undropped states.
    """

    column: str = "text"
    bos: bool = True
    eos: bool = True
    stride: int | None = None
    borders: Literal["row", "reset", "ignore"] = "row"
    activation: float = 0.0
    slowness: float = 0.0

    can: ClassVar[frozenset[str]] = TeacherForcing.can | {"bytes"}

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"causal"}

    @property
    def streams(self) -> bool:
        return self.borders != "row"

    def small(self) -> dict[str, Any]:
        return super().small() | {"stride": self.stride and min(self.stride, 128)}

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Encodes a text with the bos token of a row, and without an end token."""
        first = [codec.bos_id] if self.bos and codec.bos_id is not None else []
        return first + codec.encode(text)

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        return (("text",), ("context", "continuation"))

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes rows of a text after its context.

        Before both is the bos token, as in training. Without it a text that has no
        context comes after the eos token.
        """
        before, ids = scoring.split(codec, text)
        if settings.end:
            ids = scoring.with_end(ids, end_of(codec))
        if self.bos and codec.bos_id is not None:
            before = [codec.bos_id, *before]
        elif not before and codec.eos_id is not None:
            before = [codec.eos_id]
        return scoring.left_to_right(before, ids, settings, limit)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        bos_id = codec.bos_id if self.bos else None
        eos_id = codec.eos_id if self.eos else None
        measure = measure_of(codec, ends=eos_id is not None)
        if self.borders != "row":
            if self.stride is not None:
                raise ConfigError(
                    "objective.stride",
                    f"{self.stride} with borders={self.borders!r}",
                    "none, since such rows share no tokens",
                    "leave it out, or set objective.borders=row",
                )
            across = self.borders == "ignore"
            return Contiguous(seq_len, bos_id, eos_id, across, self.column, measure)
        stride = self.stride or seq_len
        if stride > seq_len:
            raise ConfigError(
                "objective.stride", str(stride), f"at most seq_len={seq_len}"
            )
        return Windows(
            length=seq_len,
            stride=stride,
            # Windows that share tokens are separate rows: each counts its positions
            # from its own start.
            pack=pack and stride == seq_len,
            bos_id=bos_id,
            eos_id=eos_id,
            column=self.column,
            measure=measure,
        )

    def row_lengths(self, layout: Any, index: Index) -> RowLengths | None:
        return layout.row_lengths(index) if not self.streams else None

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "targets", "weights")
        pad = transforms.PadSides(seq_len, seq_len, codec.pad_id or 0)
        if self.eos and codec.eos_id is not None:
            ends = MarkEnds(codec.eos_id)
            return self._row(seq_len), pad, ends, transforms.Keep((*names, ends.NAME))
        return self._row(seq_len), pad, transforms.Keep(names)

    def _row(self, seq_len: int) -> Callable:
        """Returns the transform that makes inputs and targets of a row's tokens."""
        if self.borders == "row":
            return NextToken()
        return NextInStream(seq_len, reset=self.borders == "reset")

    def lesson(self, model: Sequence, batch: Batch, *, train: bool) -> Lesson:
        lesson = super().lesson(model, batch, train=train)
        if not train:
            return lesson
        terms = dict(lesson.terms)
        states, shown = lesson.hidden.astype(jnp.float32), self._shown(batch)
        if self.activation:
            size = self.activation * jnp.mean(jnp.square(states), axis=-1)
            terms["activation"] = losses.weighted(size, shown["activation"])
        if self.slowness:
            steps = jnp.square(states[:, 1:] - states[:, :-1])
            size = self.slowness * jnp.mean(steps, axis=-1)
            terms["slowness"] = losses.weighted(size, shown["slowness"])
        return lesson._replace(terms=terms)

    def agreement(self, codec: Codec) -> dict[str, Any]:
        found = {"objective.bos": self.bos and codec.bos_id is not None}
        return found | {"objective.eos": self.eos and codec.eos_id is not None}

    def counts(self, batch: Batch) -> dict[str, Any]:
        shown = {name: weights.sum() for name, weights in self._shown(batch).items()}
        return super().counts(batch) | shown

    def _shown(self, batch: Batch) -> dict[str, Float[Array, "B _"]]:
        """Returns the weights of states, and of pairs of them, in the regularisers."""
        real, segments = batch["weights"] > 0, batch["segment_ids"]
        pairs = real[:, 1:] & real[:, :-1] & (segments[:, 1:] == segments[:, :-1])
        found = {}
        if self.activation:
            found["activation"] = real.astype(jnp.float32)
        if self.slowness:
            found["slowness"] = pairs.astype(jnp.float32)
        return found

    def measures(self) -> tuple[str, ...]:
        return (*super().measures(), *(("end_nats",) if self.eos else ()))

    def metrics(self, model: Predicts, batch: Batch) -> Terms:
        """Adds `end_nats`, the loss of the end tokens, if texts have end tokens."""
        nats, right = judge(model, batch)
        found = self._measured(nats, right, batch)
        if MarkEnds.NAME in batch:
            found["end_nats"] = losses.weighted(nats, batch[MarkEnds.NAME])
        return found


@dataclasses.dataclass(frozen=True)
class MarkEnds:
    """Adds `end_weights` (T,): the weights of end tokens, 0 for all other targets."""

    eos_id: int

    NAME = "end_weights"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        ends = example["weights"] * (example["targets"] == self.eos_id)
        return example | {self.NAME: ends.astype(np.float32)}
