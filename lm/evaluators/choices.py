"""Multiple choice and cloze by log-likelihood, without training: zero and few shots."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.data.scoring import Settings, Text
from lm.errors import DataError, Rule
from lm.evaluators import base
from lm.evaluators.likelihood import Score, exp
from lm.host import inputs, storage
from lm.metrics import statistics
from lm.objectives.base import Objective

BOUNDS = {"shots": "[0, 1024]"}
EXAMPLE = '{"context": "...", "choices": ["...", "..."], "gold": 0}'
NAME = re.compile(r"\{(\w+)\}")
# How the log-likelihoods of choices are compared.
WAYS = ("sum", "per_token", "per_byte", "per_char", "unconditional")


class Item(NamedTuple):
    """A question.

    Attributes:
      where: its file and line, for errors.
      context: before the choices, without the examples of other questions.
      choices: at least one; of a single one (cloze) only its own figures mean a thing.
      gold: the number of the right one.
    """

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """The choices that are most probable after their contexts.

    A choice is compared with the others by its log-likelihood: the sum over its tokens;
    divided by its tokens, UTF-8 bytes or characters; or less the log-likelihood of the
    same choice without context (Brown et al. 2020, section 2.4). An empty choice is
    never chosen, and of equal ones the first is. Yields

        accuracy_sum, accuracy_per_token, accuracy_per_byte, accuracy_per_char,
        accuracy_unconditional   share of the items where the chosen one is right
        <accuracy>_stderr        its standard error
        <accuracy>_low, _high    Wilson's 95 % interval
        gold_perplexity          by tokens, of the right choices
        gold_greedy              share of the items whose right choice greedy decoding
                                 gives (the accuracy of a cloze task)

    A line of `file` is a JSON object with the fields that `template` names, a list
    `choices` and `gold`, the number of the right one from 0 or its text. A cloze has
    the single choice as its list.

    Attributes:
      file: the items, JSON lines; .gz too.
      template: the context of an item; {name} stands for a field.
      choice: how a choice stands after the context; {choice} stands for it, and fields
        can be named.
      options: the choices of all items, in place of the field `choices`.
      description: stands before everything.
      shots: how many other items, with their right choices, stand before an item.
      shots_file: the file they are drawn from; None is `file` without the item itself.
      separator: between items, and after the description.
    """

    file: str = ""
    template: str = "{context}"
    choice: str = "{choice}"
    options: tuple[str, ...] = ()
    description: str = ""
    shots: int = 0
    shots_file: str | None = None
    separator: str = "\n\n"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"score"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        for field in ("file", "shots_file"):
            file = getattr(self, field)
            expected = "a file of JSON lines that exists"
            holds = file is None or Path(file).is_file()
            yield Rule(holds, f"{where}.{field}", repr(file), expected)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = ("", "_stderr", "_low", "_high")
        names = [f"accuracy_{way}{end}" for way in WAYS for end in ends]
        return (*names, "gold_perplexity", "gold_greedy")

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        items = self.items(self.file)[: self.limit]
        prompts = self.prompts(items)
        asked, free = [], []
        for item, prompt in zip(items, prompts):
            asked += [Text(choice, prompt, item.where) for choice in item.choices]
            free += [Text(c, where=item.where) for c in item.choices]
        scores = iter(model.score(asked, Settings()))
        alone = iter(model.score(free, Settings()))
        right = dict.fromkeys(WAYS, 0)
        total, tokens, greedy, rows = 0.0, 0, 0, []
        for item, prompt in zip(items, prompts):
            own = [next(scores) for _ in item.choices]
            without = [next(alone).total for _ in item.choices]
            chosen = picks(item.choices, own, without)
            for way in WAYS:
                right[way] += chosen[way] == item.gold
            gold = own[item.gold]
            total, tokens = total + gold.total, tokens + len(gold.ids)
            greedy += bool(gold.best.all())
            rows.append(_row(item, prompt, own, without, chosen))
        for way in WAYS:
            yield from _shares(f"accuracy_{way}", right[way], len(items))
        yield "gold_perplexity", exp(-total / tokens) if tokens else math.nan
        yield "gold_greedy", greedy / len(items)
        if jax.process_index() == 0:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            storage.write_text(out.samples.with_suffix(".jsonl"), "".join(lines))

    def items(self, file: str) -> list[Item]:
        """Reads the items of a file.

        Raises:
          DataError: names the line that lacks a field or has a wrong one.
        """
        lines = inputs.read_lines(Path(file), lambda line: None)
        found = [
            self._item(inputs.parse_object(line, EXAMPLE), line.where)
            for line in lines
            if line.text.strip()
        ]
        if not found:
            raise DataError(file, "no item", "at least one")
        return found

    def _item(self, row: dict[str, Any], where: str) -> Item:
        choices = [*self.options] or row.get("choices")
        texts = isinstance(choices, list) and all(isinstance(c, str) for c in choices)
        if not choices or not texts:
            raise DataError(where, f"choices={choices!r:.60}", f"texts: {EXAMPLE}")
        gold: Any = row.get("gold", 0 if len(choices) == 1 else None)
        number = choices.index(gold) if gold in choices else gold
        if type(number) is not int or not 0 <= number < len(choices):
            expected = f"a number from 0 to {len(choices) - 1}, or one of the choices"
            raise DataError(where, f"gold={gold!r:.60}", expected)
        filled = (fill(self.choice, row | {"choice": c}, where) for c in choices)
        return Item(where, fill(self.template, row, where), tuple(filled), number)

    def prompts(self, items: Sequence[Item]) -> list[str]:
        """Returns the context of each item, after examples drawn from the seed.

        Raises:
          DataError: there are fewer other items than `shots`.
        """
        pool = items if self.shots_file is None else self.items(self.shots_file)
        own = self.shots_file is None
        if self.shots > len(pool) - own:
            found = f"{len(pool)} items"
            expected = f"{self.shots + own} or more, for shots={self.shots}"
            raise DataError(self.shots_file or self.file, found, expected)
        found_prompts = []
        for number, item in enumerate(items):
            rng = np.random.default_rng((self.seed, number))
            others = [n for n in range(len(pool)) if not (own and n == number)]
            drawn = rng.permutation(others)[: self.shots].tolist()
            shown = [pool[int(n)] for n in drawn]
            parts = [self.description] if self.description else []
            parts += [each.context + each.choices[each.gold] for each in shown]
            found_prompts.append(self.separator.join([*parts, item.context]))
        return found_prompts


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Puts the fields of an item into a template.

    Raises:
      DataError: the item lacks a field, or it is neither a text nor a number.
    """

    def value(name: re.Match) -> str:
        found = row.get(name[1])
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            given = ", ".join(map(repr, row))
            expected = f"a text or a number {name[1]!r}, which the template names"
            raise DataError(where, f"the fields {given}", expected)
        return str(found)

    return NAME.sub(value, template)


def picks(
    choices: Sequence[str], scores: Sequence[Score], without: Sequence[float]
) -> dict[str, int]:
    """Returns the number of the best choice by each of WAYS.

    Args:
      without: the log-likelihood of each choice without context.
    """
    totals = np.asarray([score.total for score in scores])
    empty = np.asarray([not score.ids for score in scores])
    divisors = {
        "sum": np.ones(len(choices)),
        "per_token": np.asarray([len(score.ids) for score in scores]),
        "per_byte": np.asarray([len(choice.encode()) for choice in choices]),
        "per_char": np.asarray([len(choice) for choice in choices]),
    }
    values = {way: totals / np.maximum(by, 1) for way, by in divisors.items()}
    values["unconditional"] = totals - np.asarray(without)
    return {
        way: int(np.argmax(np.where(empty, -np.inf, value)))
        for way, value in values.items()
    }


def _shares(name: str, right: int, count: int) -> Iterator[tuple[str, float]]:
    share = right / count
    low, high = statistics.wilson(right, count)
    yield name, share
    spread = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.nan
    yield f"{name}_stderr", spread
    yield f"{name}_low", low
    yield f"{name}_high", high


def _row(
    item: Item,
    prompt: str,
    scores: Sequence[Score],
    without: Sequence[float],
    chosen: Mapping[str, int],
) -> dict[str, Any]:
    """Returns an item and its figures as a row of the samples."""

    def number(value: float) -> float | None:
        return round(value, 5) if math.isfinite(value) else None

    return {
        "where": item.where,
        "context": prompt,
        "choices": [*item.choices],
        "gold": item.gold,
        "picks": dict(chosen),
        "log_probs": [number(score.total) for score in scores],
        "unconditional": [number(value) for value in without],
        "tokens": [len(score.ids) for score in scores],
        "greedy": [bool(score.best.all()) for score in scores],
    }
