"""Rows of questions about contexts: windows, and the tokens that cover an answer.

A context that does not fit a row stands in several, each beside the whole question, as
in Devlin et al. 2019, section 4.2, and its program.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.layouts import TooLong, check_length, list_of, text_of, texts_of
from lm.data.sources.base import Record
from lm.data.transforms import Example, padded_length
from lm.data.words import Window, windows
from lm.errors import DataError
from lm.tokenizers.base import Span

MAY_END, MAY_BEGIN = 1, 2  # places of a row: where an answer may end, and begin too


class Answer(NamedTuple):
    """An answer as its characters: `text` begins at `start` of the context.

    `text` is "" where the question has no answer.
    """

    text: str
    start: int

    @property
    def end(self) -> int:
        """The character after the last."""
        return self.start + len(self.text)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads a question, its context and its answers of a record.

    Args:
      question, context: the fields with the texts.
      answers, starts: the fields with the answers and with the character of the context
        at which each begins, one or a list of each. answers=None: there are none.
    """

    question: str = "question"
    context: str = "context"
    answers: str | None = "answers"
    starts: str = "starts"

    def answers_of(self, record: Record) -> list[Answer]:
        """Returns the answers of a record, of which the context has each at its start.

        Raises:
          DataError: an answer that does not stand there.
        """
        if self.answers is None:
            return []
        context = text_of(record, self.context)
        texts = texts_of(record, self.answers)
        starts = list_of(record, self.starts)
        if len(starts) != len(texts):
            found = f"{len(texts)} {self.answers} and {len(starts)} {self.starts}"
            raise DataError(record.where, found, "a start for each answer")
        for text, start in zip(texts, starts):
            whole = isinstance(start, int) and 0 <= start <= len(context)
            there = context[start : start + len(text)] if whole else None
            if there != text:
                shown = f"the context has {there!r:.60}"
                raise DataError(
                    record.where,
                    f"the answer {text!r:.60} at character {start!r:.20}, where "
                    f"{shown if there else 'the context has nothing'}",
                    "an answer that is a part of the context, counted from 0",
                    "correct the start, or set data.on_bad=skip",
                )
        return [Answer(text, start) for text, start in zip(texts, starts)]


def covering(spans: Sequence[Span], start: int, end: int) -> tuple[int, int] | None:
    """Returns the first and the last token that cover characters start to end - 1.

    None: no token has a character of these. Tokens without characters cover nothing.
    """
    # Characters in common; of an empty span there are none.
    found = [n for n, (a, b) in enumerate(spans) if max(a, start) < min(b, end)]
    return (found[0], found[-1]) if found else None


@dataclasses.dataclass(frozen=True)
class Questions:
    """Makes a row of each question and of each window of its context.

    The pieces of a row are the question and the window. Its values are, with an item
    for each token of the window, `begins` and `ends`, its characters in the context,
    and `read`, whether an answer that begins with it is read here (`Window`). `start`
    and `end` are the tokens of the window that cover the first answer, first and last,
    or -1 where the window does not have all of them or the question has no answer;
    `weight` is 0 where no token covers the answer; `cut` counts, in the first row of a
    question, the tokens that no row has.

    Args:
      reader: reads a record.
      length: tokens that a row holds, special tokens included.
      overhead: special tokens of a row.
      question_length: tokens that are kept of a question.
      stride: tokens between the starts of windows; None: half of a window.
      too_long: how a context is treated that does not fit one row.
      encode: the tokenizer's `encode_with_offsets`; the tokenizer has a fingerprint of
        its own.
    """

    reader: Reader
    length: int
    overhead: int
    question_length: int
    stride: int | None
    too_long: TooLong
    encode: Callable[[str], tuple[list[int], list[Span]]] = dataclasses.field(
        repr=False, compare=False
    )

    def __post_init__(self):
        what = f"{self.overhead} special tokens, {self.question_length} of the question"
        least = self.overhead + self.question_length + 1
        check_length(self.length, least, f"{what} (objective.question_len), and one")

    def texts(self, record: Record) -> list[str]:
        self.reader.answers_of(record)
        return [
            text_of(record, self.reader.question),
            text_of(record, self.reader.context),
        ]

    def write(self, records: Encoded, out: Writer) -> None:
        # The questions about a paragraph follow each other.
        spans_of = functools.lru_cache(maxsize=1)(lambda text: self.encode(text)[1])
        for record, (question, context) in records:
            spans = spans_of(text_of(record, self.reader.context))
            for values in self._rows(record, question, context, spans, out):
                out.row(values.pop("pieces"), record=out.record, **values)

    def _rows(
        self,
        record: Record,
        question: list[int],
        context: list[int],
        spans: Sequence[Span],
        out: Writer,
    ) -> list[dict[str, Any]]:
        """Returns the pieces and the values of each row of a question."""
        cut = max(len(question) - self.question_length, 0)
        if cut:
            out.counts["long_questions_cut"] += 1
        question = question[: self.question_length]
        found = self._windows(record, len(question), len(context), out)
        if found:
            cut += len(context) - found[-1].end
        first = next(iter(self.reader.answers_of(record)), None)
        wanted, weight = None, 1.0
        if first is not None and first.text:
            wanted = covering(spans, first.start, first.end)
            if wanted is None:
                weight = 0.0
                out.counts["answers_without_tokens_skip"] += 1
        rows = []
        for number, window in enumerate(found):
            here = slice(window.start, window.end)
            places = np.asarray(spans[here], np.int32).reshape(-1, 2)
            start = end = -1
            if wanted and window.start <= wanted[0] and wanted[1] < window.end:
                start, end = (token - window.start for token in wanted)
            rows.append(
                {
                    "pieces": [question, context[here]],
                    "begins": places[:, 0],
                    "ends": places[:, 1],
                    "read": window.read.astype(np.int8),
                    "start": start,
                    "end": end,
                    "weight": weight,
                    "cut": cut if number == 0 else 0,
                }
            )
        return rows

    def _windows(
        self, record: Record, question: int, tokens: int, out: Writer
    ) -> list[Window]:
        """Returns the windows of a context; a single one where it is short."""
        room = self.length - self.overhead - question
        if tokens <= room:
            return [Window(0, tokens, np.ones(tokens, bool))]
        if self.too_long == "error":
            raise DataError(
                record.where,
                f"{tokens} tokens of {self.reader.context} and {question} of "
                f"{self.reader.question}",
                f"at most {self.length - self.overhead}",
                "raise seq_len, or set objective.too_long=window, cut or skip",
            )
        out.counts[f"too_long_{self.too_long}"] += 1
        if self.too_long == "skip":
            return []
        if self.too_long == "cut":
            return [Window(0, room, np.ones(room, bool))]
        return windows([1] * tokens, room, self.stride or max(room // 2, 1))

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many positions each row needs."""
        return ((index.row_lengths + self.overhead, self.length),)


@dataclasses.dataclass(frozen=True)
class Locate:
    """Adds the places of the answer in a row that has its special tokens already.

    `labels` (2,) are the places of the first and the last token that cover the answer,
    both 0, that of [CLS], where the row has none; `label_weights` is 1, or 0 where the
    answer has no tokens. `candidates` (length,) is MAY_BEGIN for the tokens of the
    window that are read, MAY_END for its others, and 0 elsewhere.

    Args:
      length: tokens of a row.
      separators: the number of [SEP] between question and window.
    """

    length: int
    separators: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        first = first_place(example, self.separators)
        places = np.asarray([example["start"], example["end"]], np.int32)
        candidates = np.zeros(padded_length(example, self.length), np.int32)
        read = np.asarray(example["read"])
        candidates[first : first + len(read)] = np.where(read, MAY_BEGIN, MAY_END)
        return example | {
            "candidates": candidates,
            "labels": np.where(places < 0, 0, first + places).astype(np.int32),
            "label_weights": np.float32(example["weight"]),
        }


def first_place(row: Mapping[str, Any], separators: int) -> int:
    """Returns the place of a window's first token: after [CLS], question and [SEP]."""
    return 1 + len(row["pieces"][0]) + separators
