"""Answers that are generated, without training: exact match, zero and few shots."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lm.data.scoring import Text
from lm.data.sources.base import ABSENT, value_at
from lm.decoding.loop import Settings
from lm.errors import DataError, Rule
from lm.evaluators import base, tasks
from lm.metrics import squad
from lm.objectives.base import Objective

BOUNDS = {"max_tokens": "[1, 1048576]", "level": "(0, 1)"}
CHANGEABLE = ("level",)
EXAMPLE = '{"context": "...", "answers": ["..."]}'


@dataclasses.dataclass(frozen=True)
class Item(tasks.Item):
    """A question with its answers.

    Attributes:
      answers: all that are right, at least one.
      shown: the first of them, as it stands after the context of an example.
    """

    answers: tuple[str, ...]
    shown: str

    @property
    def solved(self) -> str:
        return self.context + self.shown


@dataclasses.dataclass(frozen=True)
class Evaluator(tasks.TaskEvaluator):
    """How many questions are answered with one of the right texts.

    The answer is generated greedily after the prompt, which is left as it is: a
    template should not end with the space that begins the answer. Of a prompt that is
    too long for the model, the left end is cut. Yields

        exact_match            share of the answers that are right
        exact_match_stderr     its standard error
        exact_match_low, _high Wilson's interval

    Attributes:
      answers: the field of the right answers, or its path: a text, a number or a list.
      answer: how an answer stands after the context of an example; {answer} stands for
        it, and fields can be named.
      stop: the answer ends before the first of these texts.
      max_tokens: the most tokens of an answer.
      pattern: a regular expression; what its first group, or all of it, last matches in
        the generated text is the answer. Without a match none is given.
      normalise: what is made equal before answers are compared: "spaces", runs of white
        space, and none at the ends; "words", also cases, and neither ASCII punctuation
        nor the words a, an, the count, as in SQuAD.
      level: of the interval.
    """

    answers: str = "answers"
    answer: str = " {answer}"
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 32
    pattern: str = ""
    normalise: Literal["spaces", "words"] = "spaces"
    level: float = 0.95

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"extend", "prompt"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        yield from super().rules(config, where)
        expected = "texts that end an answer, none of them empty"
        yield Rule("" not in self.stop, f"{where}.stop", repr(self.stop), expected)
        try:
            wrong = None if re.compile(self.pattern).groups <= 1 else "several groups"
        except re.error as error:
            wrong = str(error)
        found = f"{self.pattern!r} ({wrong})"
        expected = "a regular expression with one group at most"
        yield Rule(wrong is None, f"{where}.pattern", found, expected)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        return tuple(f"exact_match{end}" for end in ("", "_stderr", "_low", "_high"))

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        items = self.items(self.file)[: self.limit]
        before = self.examples(items)
        prompts = [
            Text(shown + item.context, where=item.where)
            for item, shown in zip(items, before)
        ]
        written = model.write(prompts, Settings(max_tokens=self.max_tokens), self.stop)
        right, rows = 0, []
        for item, prompt, text in zip(items, prompts, written):
            answer = self.extract(text)
            hit = answer is not None and self.matches(answer, item.answers)
            right += hit
            row = {"where": item.where, "context": prompt.text, "generated": text}
            row |= {"answer": answer, "answers": [*item.answers], "right": hit}
            rows.append(row)
        yield from tasks.shares("exact_match", right, len(items), self.level)
        tasks.write_rows(rows, out)

    def extract(self, text: str) -> str | None:
        """Returns the answer within a generated text; None without one."""
        if not self.pattern:
            return text
        found = [*re.finditer(self.pattern, text)]
        return found[-1][found[-1].re.groups] if found else None

    def matches(self, answer: str, right: tuple[str, ...]) -> bool:
        """Tells whether an answer equals one of the right ones when normalised."""
        plain = squad.normalize if self.normalise == "words" else _spaces
        return plain(answer) in map(plain, right)

    def item(self, row: dict[str, Any], where: str) -> Item:
        found: Any = value_at(row, self.answers)
        listed = found if isinstance(found, list) else [found]
        if not listed or any(
            isinstance(each, bool) or not isinstance(each, str | int | float)
            for each in listed
        ):
            shown = "nothing" if found is ABSENT else repr(found)
            expected = f"a text, a number, or a list of some: {EXAMPLE}"
            raise DataError(where, f"{self.answers}={shown:.60}", expected)
        answers = tuple(map(str, listed))
        shown = tasks.fill(self.answer, row | {"answer": answers[0]}, where)
        return Item(where, tasks.fill(self.template, row, where), answers, shown)


def _spaces(text: str) -> str:
    return " ".join(text.split())
