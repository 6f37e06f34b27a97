"""Rows of a prompt with two answers, of which the first is the better one."""

import dataclasses
import itertools
from typing import Literal

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.dialogues import TOGETHER, turns_of
from lm.data.index import Encoded, Index, Writer
from lm.data.layouts import check_length, text_of
from lm.data.sources.base import Record
from lm.data.transforms import Example
from lm.errors import DataError
from lm.tokenizers.dialogues import Conversation, Form, Turn


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Makes a row of each record: two pieces, the prompt with each of two answers.

    The index stores for each row `learned`, 1 for each target that is a token of an
    answer and 0 for the others.

    Args:
      form: how turns become tokens.
      length: number of input tokens of a row, of both pieces together.
      too_long: how a record is treated that does not fit.
      prompt: the field with the user's turn; None: a dialogue up to a user's turn is in
        the fields `roles` and `contents`.
      answers: the fields with the two answers.
    """

    form: Form
    length: int
    too_long: Literal["error", "skip"]
    prompt: str | None
    answers: tuple[str, str]
    roles: str = "roles"
    contents: str = "contents"

    def __post_init__(self):
        check_length(self.length, 4, "a token of a prompt and one of an answer, twice")

    def texts(self, record: Record) -> list[str]:
        turns = self._asked(record)
        return [*(turn.content for turn in turns), *self._answers(record)]

    def write(self, records: Encoded, out: Writer) -> None:
        numbered = ((out.record, record) for record, _ in records)
        while chunk := list(itertools.islice(numbered, TOGETHER)):
            given = [
                Conversation([*asked, Turn("assistant", answer)], record.where)
                for _, record in chunk
                for asked in [self._asked(record)]
                for answer in self._answers(record)
            ]
            found = iter(self.form.dialogues(given, last=True))
            for number, record in chunk:
                pair = next(found), next(found)
                size = sum(len(dialogue.ids) - 1 for dialogue in pair)
                if size > self.length:
                    if self.too_long == "error":
                        raise self._long(record, size)
                    out.counts["too_long_skip"] += 1
                    continue
                learned = []
                for dialogue in pair:
                    [(start, stop)] = dialogue.answers
                    learned.append(np.zeros(len(dialogue.ids) - 1, np.uint8))
                    learned[-1][start - 1 : stop - 1] = 1
                out.row(
                    [dialogue.ids for dialogue in pair],
                    learned=np.concatenate(learned),
                    record=number,
                )

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many inputs each row has."""
        return ((index.row_lengths - 2, self.length),)

    def _asked(self, record: Record) -> tuple[Turn, ...]:
        """Returns the turns before the answers."""
        if self.prompt is None:
            return turns_of(record, self.roles, self.contents, answered=False)
        text = text_of(record, self.prompt)
        if not text.strip():
            raise DataError(record.where, f"an empty {self.prompt}", "a text")
        return (Turn("user", text),)

    def _answers(self, record: Record) -> list[str]:
        """Returns the two answers, which differ and are not empty."""
        texts = [text_of(record, column) for column in self.answers]
        for column, text in zip(self.answers, texts):
            if not text.strip():
                raise DataError(record.where, f"an empty {column}", "a text")
        if texts[0] == texts[1]:
            found = f"{self.answers[0]} and {self.answers[1]}, equal texts"
            expected = "two answers of which one is better"
            raise DataError(record.where, found, expected, "set data.on_bad=skip")
        return texts

    def _long(self, record: Record, size: int) -> DataError:
        return DataError(
            record.where,
            f"{size} tokens of the prompt with each answer",
            f"at most {self.length}",
            "raise seq_len, or set objective.too_long=skip",
        )


@dataclasses.dataclass(frozen=True)
class WeighPair:
    """Adds `pair_weights` (), which is 1: the weight of a record in the loss.

    The weights of tokens become `answers` (T,), which tells of a target whether it is a
    token of an answer: no sum is proportional to them.
    """

    NAME = "pair_weights"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return example | {self.NAME: np.float32(1), "answers": example["weights"]}
