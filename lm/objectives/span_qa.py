"""Extractive question answering: an answer is a part of the context (SQuAD).

The first and the last token of the answer are predicted, [CLS] for both where a row has
no answer (Devlin et al. 2019, sections 4.2 and 4.3).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm.data import transforms
from lm.data.answers import Candidate, Found, candidates_of, conclude
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import text_of
from lm.data.questions import MAY_BEGIN, Locate, Questions, Reader, first_place
from lm.data.sources.base import Record
from lm.errors import Rule
from lm.models.base import Head, Headed, States
from lm.models.blocks.heads import Linear
from lm.objectives import base
from lm.objectives.base import Asked, Batch, Rows, Terms
from lm.ops import losses, spans
from lm.tokenizers.base import Codec

BOUNDS = {
    "question_len": "[1, 16777216]",
    "stride": "[1, 16777216]",
    "separators": "[1, 8]",
    "answer_len": "[1, 1000]",
    "n_best": "[1, 1000]",
}
CHANGEABLE = ("answer_len", "n_best", "null_threshold")


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `span_qa`.

    A row is [CLS] question [SEP] window [SEP]. A window that lacks a part of the answer
    points to [CLS]. Of several answers the first is learnt.

    Attributes:
      question, context: the columns of the question and of the text that answers it.
      answer, start: the columns of the answers, a text or a list, and of the characters
        of the context at which they begin, from 0; "" at 0 is for a question without an
        answer. answer=None is for records that have none.
      question_len: tokens that are kept of a question.
      separators: the number of [SEP] between question and window: 1 in BERT, 2 in
        RoBERTa.
      too_long: what to do with a context that does not fit a row: refuse it, cut its
        end, skip the question, or divide it into windows that overlap. An answer that
        begins in several windows is read in that in which its first token has most
        context.
      stride: tokens between the starts of windows; None: half of a window.
      answer_len: tokens of the longest answer that is predicted.
      n_best: how many candidates a question has.
      null_threshold: a question has no answer if the score of [CLS], the least of all
        windows, is higher than that of the best answer by more than this. None: every
        question has one.
    """

    question: str = "question"
    context: str = "context"
    answer: str | None = "answers"
    start: str = "starts"
    question_len: int = 64
    separators: int = 1
    too_long: Literal["error", "cut", "window", "skip"] = "window"
    stride: int | None = None
    answer_len: int = 30
    n_best: int = 20
    null_threshold: float | None = None

    can: ClassVar[frozenset[str]] = frozenset({"extracts", "show", "answers"})

    # ── Requirements on the config and the model ────────────────────────────────────

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden", "head", "whole"})

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"token_types"})

    @property
    def along(self) -> frozenset[str]:
        return frozenset({"candidates"})

    @property
    def packs(self) -> bool:
        return False

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        found, expected = "None", "a column: a run is trained with answers"
        yield Rule(self.answer is not None, "objective.answer", found, expected)

    def small(self) -> dict[str, Any]:
        return {"question_len": min(self.question_len, 16), "stride": None}

    def heads(self) -> tuple[Head, ...]:
        return (Head("span", functools.partial(Linear, outputs=2)),)

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        return (self.question, self.context)

    @property
    def reader(self) -> Reader:
        """Returns what reads the answers of a record."""
        return Reader(self.question, self.context, self.answer, self.start)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        self._delimiters(codec)
        return Questions(
            reader=self.reader,
            length=seq_len,
            overhead=2 + self.separators,
            question_length=self.question_len,
            stride=self.stride,
            too_long=self.too_long,
            encode=codec.encode_with_offsets,
        )

    def _delimiters(self, codec: Codec) -> tuple[int, int]:
        return base.delimiters(codec, "objective.name=span_qa")

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "token_types")
        return (
            transforms.WrapPair(seq_len, *self._delimiters(codec), self.separators),
            transforms.Pad(seq_len, codec.pad_id or 0),
            Locate(seq_len, self.separators),
            transforms.Keep((*names, "candidates", "labels", "label_weights")),
        )

    def unlabelled(self) -> "Objective":
        return dataclasses.replace(self, answer=None)

    def extract(self, record: Record, rows: Sequence[Asked]) -> Found:
        """Returns the answer to a question by all its rows ("extracts").

        Args:
          rows: those of the record, at least one; of each the `row` of the index and
            the `predictions` are used.
        """
        context = text_of(record, self.context)
        found: list[Candidate] = []
        for asked in rows:
            first = first_place(asked.row, self.separators)
            found += candidates_of(context, asked.row, asked.predictions, first)
        nulls = [float(asked.predictions["null_scores"]) for asked in rows]
        return conclude(found, nulls, self.n_best, self.null_threshold)

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        one = ("answer", "score", "probability", "start", "end")
        return {"answers": one, "candidates": ("answer", "candidates")}

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the answer, its characters in the context, and all candidates.

        An answer "" has no `start` and no `end`.
        """
        if not rows:
            names = {name for names in self.says.values() for name in names}
            return dict.fromkeys([*sorted(names), "truncated"])
        found = self.extract(record, rows)
        return {
            **found.answer.as_json(),
            "candidates": [each.as_json() for each in found.candidates],
            "truncated": sum(int(asked.row["cut"]) for asked in rows),
        }

    # ── On the device ───────────────────────────────────────────────────────────────

    def _logits(
        self, model: States, batch: Batch, train: bool
    ) -> Float[Array, "B 2 T"]:
        """Returns the scores of each token as the first and as the last one.

        They are NEVER but for the tokens of the window and [CLS].
        """
        hidden = model(batch, train=train)
        headed = cast(Headed, model)  # `needs` requires "head".
        logits = jnp.moveaxis(headed.head("span", hidden, train=train), -1, 1)
        allowed = (batch["candidates"] > 0).at[:, 0].set(True)
        return jnp.where(allowed[:, None], logits, spans.NEVER)

    def loss(self, model: States, batch: Batch, *, train: bool) -> Terms:
        return {"span": self._loss(self._logits(model, batch, train), batch)}

    def _loss(self, logits: Float[Array, "B 2 T"], batch: Batch) -> tuple:
        """Averages the losses of the first and of the last token."""
        each = losses.token_losses(logits, batch["labels"])
        return losses.weighted(each.mean(axis=1), batch["label_weights"])

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"span": batch["label_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("span_loss", "span_accuracy")

    def metrics(self, model: States, batch: Batch) -> Terms:
        """Returns the loss, and the share of rows whose two places are both right."""
        logits = self._logits(model, batch, False)
        right = (logits.argmax(axis=-1) == batch["labels"]).all(axis=1)
        accuracy = losses.weighted(right, batch["label_weights"])
        return {"span_loss": self._loss(logits, batch), "span_accuracy": accuracy}

    def predict(self, model: States, batch: Batch) -> dict[str, Any]:
        """Returns the best spans of each row, and its score of having none.

        `starts`, `ends` and `scores` (B, N) are those of `lm.ops.spans.Spans`, with
        places in the row; `null_scores` (B,) is the score of [CLS].
        """
        logits = self._logits(model, batch, False)
        found = spans.best(
            logits[:, 0],
            logits[:, 1],
            batch["candidates"] == MAY_BEGIN,
            batch["candidates"] > 0,
            most=self.answer_len,
            count=self.n_best,
        )
        return {**found._asdict(), "null_scores": logits[:, :, 0].sum(axis=1)}

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows question, window, answer and the best span, or "" for none."""
        ids, kinds = batch["inputs"][row], batch["candidates"][row]
        real = np.flatnonzero(batch["segment_ids"][row])
        window = np.flatnonzero(kinds)
        first = window[0] if len(window) else real[-1]
        places = [int(predictions[name][row][0]) for name in ("starts", "ends")]
        null = predictions["null_scores"][row] > predictions["scores"][row][0]

        def text(start: int, end: int) -> str:
            return codec.decode(ids[start : end + 1].tolist())

        parts = {
            "question": codec.decode(ids[:first].tolist()),
            "context": codec.decode(ids[window].tolist()),
            "answer": text(*batch["labels"][row].tolist()),
            "predicted": "" if null else text(*places),
        }
        return "\n".join(f"{name}: {value}" for name, value in parts.items())
