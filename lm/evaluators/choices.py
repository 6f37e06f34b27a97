"""Multiple choice and cloze by log-likelihood, without training: zero and few shots."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.scoring import Settings, Text
from lm.data.sources.base import ABSENT, value_at
from lm.errors import DataError
from lm.evaluators import base, tasks
from lm.evaluators.likelihood import Score, exp
from lm.metrics import statistics
from lm.objectives.base import Objective

BOUNDS = {"level": "(0, 1)", "resamples": "[0, 100000]"}
CHANGEABLE = ("level", "resamples")
EXAMPLE = '{"context": "...", "choices": ["...", "..."], "gold": 0}'
# How the log-likelihoods of choices are compared.
WAYS = ("sum", "per_token", "per_byte", "per_char", "unconditional")


@dataclasses.dataclass(frozen=True)
class Item(tasks.Item):
    """A question with its choices.

    Attributes:
      contexts: of each choice, what stands before it; mostly the same.
      choices: at least one; of a single one (cloze) only its own figures mean a thing.
      gold: the number of the right one.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int

    @property
    def solved(self) -> str:
        return self.contexts[self.gold] + self.choices[self.gold]


@dataclasses.dataclass(frozen=True)
class Evaluator(tasks.TaskEvaluator):
    """The choices that are most probable after their contexts.

    A choice is compared with the others by its log-likelihood: the sum over its tokens;
    divided by its tokens, UTF-8 bytes or characters; or less the log-likelihood of the
    same choice without context (Brown et al. 2020, section 2.4). An empty choice is
    never chosen, and of equal ones the first is. Yields

        accuracy_sum, accuracy_per_token, accuracy_per_byte, accuracy_per_char,
        accuracy_unconditional   share of the items where the chosen one is right
        gold_greedy              share of the items whose right choice greedy decoding
                                 gives (the accuracy of a cloze task)
        <share>_stderr           the standard error of each of these
        <share>_low, _high       Wilson's interval
        gold_perplexity          by tokens, of the right choices, with _low and _high
                                 of the bootstrap interval over items

    Of a context that is too long for the model, the left end is cut. An item has the
    fields that `template` names, a list of choices and the right one, its number from 0
    or its text. A cloze has the single choice as its list. Where the blank is within a
    sentence, `template` names {choice} too, as in "{before} {choice}" with
    choice=" {after}": then what is scored is the rest after each choice (Trinh and Le
    2018).

    Attributes:
      choice: how a choice stands after the context; {choice} stands for it, and fields
        can be named.
      options: the choices of all items, in place of the field; they are templates.
      choices: the field of the choices, or its path.
      gold: the field of the right one, or its path.
      level: of the intervals.
      resamples: how many the bootstrap interval is of; 0 gives none.
    """

    choice: str = "{choice}"
    options: tuple[str, ...] = ()
    choices: str = "choices"
    gold: str = "gold"
    level: float = 0.95
    resamples: int = 1000

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"score"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = ("", "_stderr", "_low", "_high")
        shares = [*(f"accuracy_{way}" for way in WAYS), "gold_greedy"]
        names = [f"{share}{end}" for share in shares for end in ends]
        names += ["gold_perplexity"]
        if self.resamples:
            names += ["gold_perplexity_low", "gold_perplexity_high"]
        return tuple(names)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        items = self.items(self.file)[: self.limit]
        before = self.examples(items)
        asked, free = [], []
        for item, shown in zip(items, before):
            pairs = zip(item.choices, item.contexts)
            asked += [Text(choice, shown + each, item.where) for choice, each in pairs]
            free += [Text(choice, where=item.where) for choice in item.choices]
        scored = model.score(asked, Settings())
        if cut := sum(score.cut > 0 for score in scored):
            out.note(f"{out.samples.stem}: contexts too long, cut at their left: {cut}")
        scores = iter(scored)
        alone = iter(model.score(free, Settings()))
        right = dict.fromkeys([*(f"accuracy_{way}" for way in WAYS), "gold_greedy"], 0)
        nats, rows = [], []
        for item, shown in zip(items, before):
            own = [next(scores) for _ in item.choices]
            without = [next(alone).total for _ in item.choices]
            chosen = picks(item.choices, own, without)
            for way in WAYS:
                right[f"accuracy_{way}"] += chosen[way] == item.gold
            gold = own[item.gold]
            nats.append([-gold.total, len(gold.ids)])
            right["gold_greedy"] += bool(gold.best.all())
            rows.append(_row(item, shown, own, without, chosen))
        for name, count in right.items():
            yield from tasks.shares(name, count, len(items), self.level)
        yield from self._perplexity(np.asarray(nats, np.float64))
        tasks.write_rows(rows, out)

    def _perplexity(self, nats: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yields that of the right choices, of their nats and tokens, (items, 2)."""
        total, tokens = nats.sum(axis=0).tolist()
        yield "gold_perplexity", exp(total / tokens) if tokens else math.nan
        if self.resamples:
            possible = np.where(np.isfinite(nats), nats, math.nan)
            drawn = statistics.draw(possible, self.resamples, self.seed)
            ends = statistics.percentiles(statistics.ratios(drawn), self.level)
            for end, value in zip(("low", "high"), ends):
                yield f"gold_perplexity_{end}", exp(value)

    def item(self, row: dict[str, Any], where: str) -> Item:
        options = [tasks.fill(option, row, where) for option in self.options]
        found: Any = options or value_at(row, self.choices)
        texts = isinstance(found, list) and all(isinstance(c, str) for c in found)
        if not found or not texts:
            shown = "nothing" if found is ABSENT else repr(found)
            raise DataError(where, f"{self.choices}={shown:.60}", f"texts: {EXAMPLE}")
        gold: Any = value_at(row, self.gold)
        if gold is ABSENT:
            gold = 0 if len(found) == 1 else None
        number = found.index(gold) if gold in found else gold
        if type(number) is not int or not 0 <= number < len(found):
            expected = f"a number from 0 to {len(found) - 1}, or one of the choices"
            raise DataError(where, f"{self.gold}={gold!r:.60}", expected)
        rows = [row | {"choice": choice} for choice in found]
        contexts = tuple(tasks.fill(self.template, each, where) for each in rows)
        filled = tuple(tasks.fill(self.choice, each, where) for each in rows)
        return Item(where, contexts[number], contexts, filled, number)


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


def _row(
    item: Item,
    before: str,
    scores: Sequence[Score],
    without: Sequence[float],
    chosen: Mapping[str, int],
) -> dict[str, Any]:
    """Returns an item and its figures as a row of the samples.

    Args:
      before: the examples before the item.
    """

    def number(value: float) -> float | None:
        return round(value, 5) if math.isfinite(value) else None

    return {
        "where": item.where,
        "context": before + item.context,
        "choices": [*item.choices],
        "gold": item.gold,
        "picks": dict(chosen),
        "log_probs": [number(score.total) for score in scores],
        "unconditional": [number(value) for value in without],
        "tokens": [len(score.ids) for score in scores],
        "greedy": [bool(score.best.all()) for score in scores],
    }
