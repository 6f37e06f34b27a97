"""Dialogues as token ids: what a model reads, and which of it are its answers.

Training and generation use the same forms: the tokens before an answer are those after
which `lm.generate --chat` asks for it, and an answer ends with the token at which
generation stops.
"""

import abc
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lm.errors import DataError
from lm.tokenizers.base import ROLES, Codec

NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Turn(NamedTuple):
    """A turn of a dialogue; the role is a key of NAMES."""

    role: str
    content: str


class Conversation(NamedTuple):
    """The turns of a dialogue, the oldest first, and its place for errors."""

    turns: Sequence[Turn]
    where: str = "dialogue"


class Dialogue(NamedTuple):
    """A dialogue as a model reads it.

    Attributes:
      ids: its tokens, up to the end of the last answer.
      answers: for each answer that is learned, where its tokens start and stop, its end
        token included; 0 < start < stop.
    """

    ids: list[int]
    answers: list[tuple[int, int]]


class Form(abc.ABC):
    """How dialogues are written; its `repr` is part of the fingerprint of an index.

    In what is given to `dialogues`, the last turn is the assistant's; in what is given
    to `prompt`, the user's.
    """

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[int, ...]:
        """Returns the ids of the tokens that end an answer.

        Raises:
          DataError: no token does.
        """

    def check(self) -> None:
        """Raises what `ends` raises, before any dialogue is encoded."""
        _ = self.ends

    @abc.abstractmethod
    def dialogues(
        self, conversations: Sequence[Conversation], *, last: bool = False
    ) -> list[Dialogue]:
        """Encodes dialogues.

        Args:
          last: whether their last answers alone are learned.

        Raises:
          DataError: the form cannot write one of them.
        """

    @abc.abstractmethod
    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the tokens after which the model is to answer."""


@dataclasses.dataclass(frozen=True)
class Plain(Form):
    """Each turn after the name of its speaker; the end token closes an answer.

    The tokens are those of "User: Hi\\nAssistant:", then of " Hello", the end token,
    and so on with "\\nUser: ...". Before all is the token that begins a text, if the
    tokenizer has one.
    """

    codec: Codec = dataclasses.field(repr=False, compare=False)

    @property
    def ends(self) -> tuple[int, ...]:
        """Returns the end token; DataError where the tokenizer has none."""
        if self.codec.eos_id is None:
            expected = "one, which ends the assistant's turns"
            raise DataError("tokenizer", "no end token (eos)", expected)
        return (self.codec.eos_id,)

    def dialogues(
        self, conversations: Sequence[Conversation], *, last: bool = False
    ) -> list[Dialogue]:
        """See `Form`."""
        several = [[*exchanges(each.turns)] for each in conversations]
        asked = [e for exchanged in several for e in exchanged]
        before = self.codec.encode_batch([e.before for e in asked])
        whole = self.codec.encode_batch([f"{e.before} {e.answer}" for e in asked])
        encoded = iter([*zip(asked, before, whole)])
        return [self._joined([next(encoded) for _ in e], last) for e in several]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """See `Form`."""
        *done, asked = exchanges(turns)
        said = [turn for e in done for turn in e.turns]
        ids = self.dialogues([Conversation(said)])[0].ids
        return [*ids, *self.codec.encode(asked.before)]

    def _joined(
        self, encoded: list[tuple["Exchange", list[int], list[int]]], last: bool
    ) -> Dialogue:
        """Joins the tokens of exchanges."""
        (end,), first = self.ends, self.codec.bos_id
        ids, answers = [] if first is None else [first], []
        for exchange, before, whole in encoded:
            if whole[: len(before)] != before:  # A token would span the border.
                whole = before + self.codec.encode(f" {exchange.answer}")
            if whole[-1:] != [end]:  # Some tokenizers end a line with it.
                whole = [*whole, end]
            answers.append((len(ids) + len(before), len(ids) + len(whole)))
            ids += whole
        return Dialogue(ids, answers[-1:] if last else answers)


class Exchange(NamedTuple):
    """What is said up to an answer, with the assistant's name, and the answer."""

    before: str
    answer: str
    turns: Sequence[Turn]


def exchanges(turns: Sequence[Turn]) -> Iterator[Exchange]:
    """Divides a dialogue after each answer; the last one may be missing ("")."""
    first = 0
    for n, turn in enumerate(turns):
        answered = turn.role == "assistant"
        if not answered and n + 1 < len(turns):
            continue
        said = turns[first : n if answered else n + 1]
        lines = [f"{NAMES[t.role]}: {t.content}" for t in said]
        before = "\n".join([*([""] if first else []), *lines, f"{NAMES['assistant']}:"])
        yield Exchange(before, turn.content * answered, turns[first : n + 1])
        first = n + 1


class Rendered(NamedTuple):
    """The text that a chat template makes of a dialogue.

    Attributes:
      text: up to the end of the last answer.
      answers: where the text stops after which the model is to answer, and where that
        of the whole turn stops, for each answer that is learned.
    """

    text: str
    answers: Sequence[tuple[int, int]]


# (template, dialogues as JSON has them, variables, last) -> what each of them becomes,
# or why it cannot be rendered.
Render = Callable[..., list[Rendered | str]]


@dataclasses.dataclass(frozen=True)
class Templated(Form):
    """A chat template of a tokenizer.

    An answer is what the template adds to the text that asks for it, up to its last
    special token.

    Attributes:
      codec: the tokenizer.
      template: a Jinja program.
      render: renders it in isolation (lm/hf/chat.py).
      where: the template's place, for errors.
    """

    codec: Codec = dataclasses.field(repr=False, compare=False)
    template: str
    render: Render = dataclasses.field(repr=False, compare=False)
    where: str = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Returns the token that ends the answer to a short question."""
        turns = Turn("user", "Who?"), Turn("assistant", "I.")
        (found,) = self.dialogues([Conversation(turns, self.where)])
        return (found.ids[found.answers[-1][1] - 1],)

    @functools.cached_property
    def _special(self) -> tuple[frozenset[int], re.Pattern]:
        """Returns the special tokens, without the unknown one, and their names."""
        ids = self.codec.special_ids - {self.codec.unk_id}
        names = sorted(map(self.codec.token, ids), key=len, reverse=True)
        return frozenset(ids), re.compile("|".join(map(re.escape, names)) or "(?!)")

    @functools.cached_property
    def variables(self) -> dict[str, str]:
        """Returns the names of special tokens, as templates know them."""
        ids = {role: getattr(self.codec, f"{role}_id") for role in ROLES}
        return {
            f"{role}_token": self.codec.token(id)
            for role, id in ids.items()
            if id is not None
        }

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """See `Form`."""
        messages = [turn._asdict() for turn in turns]
        [found] = self.render(self.template, [messages], self.variables, last=True)
        if isinstance(found, str):
            raise self._refused("dialogue", found)
        return self.codec.encode_marked(found.text)

    def dialogues(
        self, conversations: Sequence[Conversation], *, last: bool = False
    ) -> list[Dialogue]:
        """See `Form`."""
        for turns, where in conversations:
            for number, turn in enumerate(turns, 1):
                if match := self._special[1].search(turn.content):
                    found = f"turn {number} with the special token {match[0]!r}"
                    expected = "text alone, since the chat template marks turns by it"
                    raise DataError(where, found, expected)
        messages = [[t._asdict() for t in each.turns] for each in conversations]
        rendered = self.render(self.template, messages, self.variables, last=last)
        return [
            self._encoded(text, conversation)
            for text, conversation in zip(rendered, conversations, strict=True)
        ]

    def _encoded(self, found: Rendered | str, of: Conversation) -> Dialogue:
        """Encodes a dialogue and finds its answers."""
        if isinstance(found, str):
            raise self._refused(of.where, found)
        text, encode = found.text, self.codec.encode_marked
        ids = encode(text)
        prompts = [encode(text[:start]) for start, _ in found.answers]
        starts = [len(prompt) for prompt in prompts]
        if any(ids[: len(prompt)] != prompt for prompt in prompts):
            # A token would span the border of an answer: each part is by itself.
            places = [0, *(place for pair in found.answers for place in pair)]
            parts = [encode(text[a:b]) for a, b in zip(places, places[1:])]
            ends = [0]
            for part in parts:
                ends.append(ends[-1] + len(part))
            ids, starts = [*itertools.chain(*parts)], ends[1::2]
        answers = []
        for first, (start, stop) in zip(starts, found.answers):
            marks = [*self._special[1].finditer(text, start, stop)]
            if not marks or text[marks[-1].end() : stop].strip():
                raise self._refused(
                    of.where, f"an answer that ends with {text[start:stop][-20:]!r}"
                )
            places = [n for n in range(first, len(ids)) if ids[n] in self._special[0]]
            answers.append((first, places[len(marks) - 1] + 1))
        return Dialogue(ids[: answers[-1][1]], answers)

    def _refused(self, where: str, found: str) -> DataError:
        fix = None
        expected = (
            "turns that it can write, each answer with a special token at its end"
        )
        if UNLIKE in found:
            expected = "a beginning that stays as it is, as generation reads it"
            fix = "set objective.learn=last, or objective.template=false"
        found = f"the chat template of {self.where} writing {found}"
        return DataError(where, found, expected, fix)


UNLIKE = "turns that are written in another way when others follow"


def open_form(
    codec: Codec, template: str | None, render: Render, where: Any
) -> Plain | Templated:
    """Returns the form by a chat template, the plain one where it is None."""
    if template is None:
        return Plain(codec)
    return Templated(codec, template, render, str(where))
