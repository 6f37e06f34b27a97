"""Rows of dialogues, in which the tokens of the assistant's answers are targets."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.data.buckets import RowLengths
from lm.data.index import Encoded, Index, Writer
from lm.data.layouts import TooLong, check_length, texts_of
from lm.data.packing import FirstFit
from lm.data.sources.base import Record
from lm.data.transforms import Example
from lm.data.windows import NextToken
from lm.errors import DataError
from lm.tokenizers.dialogues import NAMES, Conversation, Dialogue, Form, Turn

TOGETHER = 512  # dialogues that are encoded at a time


class Piece(NamedTuple):
    """A dialogue, or a part of one, as a part of a row.

    Attributes:
      ids: its tokens.
      learned: (len(ids) - 1,) uint8: which of those after the first are targets.
      size, words: UTF-8 bytes and words of the answers, an end token being a word.
      record: the number of its record.
    """

    ids: list[int]
    learned: np.ndarray
    size: float
    words: float
    record: int


@dataclasses.dataclass(frozen=True)
class Dialogues:
    """Makes rows of whole dialogues; with packing a row holds several.

    The index stores for each row `learned`, 1 for each target that is a token of an
    answer and 0 for the others, and `bytes` and `words`, those of its answers.

    Args:
      form: how turns become tokens.
      length: number of input tokens of a row.
      pack: whether a row may hold several dialogues.
      last: whether the last answer of a dialogue alone is learned.
      too_long: how a dialogue is treated that does not fit. "window" divides it between
        an answer and the next turn, and repeats the system's turn; if the last answer
        alone is learned, it drops the oldest turns instead.
      roles, contents: the fields of a record with the roles and the texts of its turns.
    """

    form: Form
    length: int
    pack: bool
    last: bool = False
    too_long: TooLong = "error"
    roles: str = "roles"
    contents: str = "contents"

    def __post_init__(self):
        check_length(self.length, 2, "a token of a question and one of the answer")

    def texts(self, record: Record) -> list[str]:
        return [turn.content for turn in self._turns(record)]

    def _turns(self, record: Record) -> tuple[Turn, ...]:
        return turns_of(record, self.roles, self.contents)

    def write(self, records: Encoded, out: Writer) -> None:
        rows = FirstFit((self.length,), 1 if self.pack else self.length)
        numbered = ((out.record, record) for record, _ in records)
        while chunk := list(itertools.islice(numbered, TOGETHER)):
            for piece in self._pieces(chunk, out):
                for row in rows.add((len(piece.ids) - 1,), piece):
                    self._write(row, out)
        for row in rows.rest():
            self._write(row, out)

    def row_lengths(self, index: Index) -> RowLengths:
        """Returns how many inputs each row has, without packing."""
        return ((index.row_lengths - 1, self.length),)

    def _write(self, row: list[Piece], out: Writer) -> None:
        out.row(
            [piece.ids for piece in row],
            learned=np.concatenate([piece.learned for piece in row]),
            bytes=sum(piece.size for piece in row),
            words=sum(piece.words for piece in row),
            record=[piece.record for piece in row] if self.pack else row[0].record,
        )

    def _pieces(self, chunk: list[tuple[int, Record]], out: Writer) -> Iterator[Piece]:
        """Yields the pieces of some records."""
        given = []
        for _, record in chunk:
            turns = self._turns(record)
            if turns[-1].role != "assistant":
                out.counts["last_turn_without_answer"] += 1
                turns = turns[:-1]
            given.append(Conversation(turns, record.where))
        found = self.form.dialogues(given, last=self.last)
        parts = [self._parts(*pair) for pair in zip(given, found)]
        encoded = iter(self.form.dialogues([*itertools.chain(*parts)], last=self.last))
        for (number, record), conversation, whole, own in zip(
            chunk, given, found, parts
        ):
            divided = [(part, next(encoded)) for part in own]
            if self._fits(whole):
                yield self._piece(conversation, whole, number)
                continue
            if self.too_long == "error":
                raise self._long(record, whole)
            out.counts[f"too_long_{self.too_long}"] += 1
            if self.too_long == "cut":
                piece = self._piece(conversation, whole, number)
                if piece.learned.any():
                    yield piece
                else:
                    out.counts["no_answer_left_skip"] += 1
            elif self.too_long == "window":
                fit = [pair for pair in divided if self._fits(pair[1])]
                if len(fit) < (1 if self.last else len(divided)):
                    unfit = [each for _, each in divided if not self._fits(each)]
                    raise self._long(record, unfit[-1])
                for part, dialogue in fit[:1] if self.last else fit:
                    yield self._piece(part, dialogue, number)

    def _fits(self, dialogue: Dialogue) -> bool:
        return len(dialogue.ids) - 1 <= self.length

    def _piece(self, of: Conversation, dialogue: Dialogue, number: int) -> Piece:
        """Makes a piece, of at most the length of a row."""
        ids = dialogue.ids[: self.length + 1]
        contents = [turn.content for turn in of.turns if turn.role == "assistant"]
        learned = np.zeros(len(ids) - 1, np.uint8)
        size = words = 0.0
        spans = dialogue.answers
        for content, (start, stop) in zip(contents[-len(spans) :], spans):
            learned[start - 1 : stop - 1] = 1
            share = max(min(stop, len(ids)) - start, 0) / (stop - start)
            size += share * len(content.encode())
            words += share * (len(content.split()) + 1)
        return Piece(ids, learned, size, words, number)

    def _parts(self, of: Conversation, dialogue: Dialogue) -> list[Conversation]:
        """Returns the parts of a dialogue that is to be divided; else [].

        If the last answer alone is learned, each part lacks more of the oldest turns.
        """
        if self._fits(dialogue) or self.too_long != "window":
            return []
        turns = list(of.turns)
        head = turns[:1] if turns[0].role == "system" else []
        body = turns[len(head) :]
        if self.last:
            firsts = range(2, len(body), 2) or range(1)
            return [Conversation([*head, *body[n:]], of.where) for n in firsts]
        # The head is counted with the first question, since nobody knows them apart.
        first = dialogue.answers[0][0]
        stops = [stop for _, stop in dialogue.answers]
        sizes = [stop - start for start, stop in zip([first, *stops], stops)]
        parts: list[list[Turn]] = []
        total = self.length + 2
        for n, size in enumerate(sizes):
            total += size
            if total > self.length + 1:
                parts, total = [*parts, [*head]], first + size
            parts[-1] += body[2 * n : 2 * n + 2]
        return [Conversation(part, of.where) for part in parts]

    def _long(self, record: Record, dialogue: Dialogue) -> DataError:
        others = ["cut"] * (not self.last) + ["window"] * (self.too_long == "error")
        others.append("skip")
        return DataError(
            record.where,
            f"a dialogue of {len(dialogue.ids)} tokens"
            if self.too_long == "error"
            else f"a question and its answer of {len(dialogue.ids)} tokens",
            f"at most {self.length + 1}",
            f"raise seq_len, or set objective.too_long={' or '.join(others)}",
        )


def turns_of(
    record: Record, roles: str, contents: str, *, answered: bool = True
) -> tuple[Turn, ...]:
    """Returns the turns of a record.

    The system's turn may come first; then the user and the assistant take turns.

    Args:
      roles, contents: the fields that hold them.
      answered: whether an answer must be among them; otherwise the user's turn is last.

    Raises:
      DataError: names the turn that should not be there, or lacks a text.
    """
    names, texts = texts_of(record, roles), texts_of(record, contents)
    if len(names) != len(texts):
        found = f"{len(names)} {roles} and {len(texts)} {contents}"
        raise DataError(record.where, found, "a role for each text")
    turns = tuple(map(Turn, names, texts))
    wanted: tuple[str, ...] = ("system", "user")
    for number, (role, content) in enumerate(turns, 1):
        place = f"turn {number}"
        if role not in NAMES:
            known = ", ".join(NAMES)
            raise DataError(record.where, f"{place} of {role!r:.40}", f"one of {known}")
        if role not in wanted:
            expected = f"a turn of {' or '.join(wanted)}"
            found = f"{place} of {role}"
            found += f" after one of {turns[number - 2].role}" if number > 1 else ""
            raise DataError(record.where, found, expected)
        if not content.strip():
            raise DataError(record.where, f"{place}, of {role}, empty", "a text")
        wanted = ("assistant",) if role == "user" else ("user",)
    has = any(turn.role == "assistant" for turn in turns)
    if (answered and not has) or (not answered and turns[-1].role != "user"):
        found = f"{len(turns)} turns, the last of {turns[-1].role}"
        found = found if not answered else f"{found}, and none of the assistant"
        expected = "an answer of the assistant to learn" if answered else "the user's"
        raise DataError(record.where, found, expected)
    return turns


@dataclasses.dataclass(frozen=True)
class NextInAnswer:
    """Makes each piece a segment whose targets are its next tokens; see `NextToken`.

    The weight of a target is 1 in an answer and 0 elsewhere.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        example = NextToken()(example | {"unscored": 0}, rng)
        return example | {"weights": example["learned"].astype(np.float32)}
