"""Tasks as files: the items of JSON lines, templates, and prompts with examples."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.data.sources.base import value_at
from lm.errors import DataError, Rule
from lm.evaluators import base
from lm.host import inputs, storage
from lm.metrics import statistics

BOUNDS = {"shots": "[0, 1024]"}
NAME = re.compile(r"\{(\w+(?:\.\w+)*)\}")


@dataclasses.dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
      where: its file and line, for errors.
      context: what stands before the answer, without the examples of other questions.
    """

    where: str
    context: str

    @property
    def solved(self) -> str:
        """The question with its answer, as an example before others."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TaskEvaluator(base.Evaluator):
    """The base of evaluators that ask the questions of a file.

    A line of `file` is a JSON object with the fields that the templates name; blank
    lines are passed over. In a template {name} stands for a field, and {a.b.0} for a
    value within objects and lists; other braces are what they are.

    Attributes:
      file: the items, JSON lines; .gz too.
      template: the context of an item.
      description: stands before everything.
      shots: how many other items, with their answers, stand before an item. They are
        drawn for each item from `seed` and its number alone.
      shots_file: the file they are drawn from; None is `file` without the item itself.
      separator: between items, and after the description.
    """

    file: str = ""
    template: str = "{context}"
    description: str = ""
    shots: int = 0
    shots_file: str | None = None
    separator: str = "\n\n"

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        for field in ("file", "shots_file"):
            file = getattr(self, field)
            expected = "a file of JSON lines that exists"
            holds = file is None or Path(file).is_file()
            yield Rule(holds, f"{where}.{field}", repr(file), expected)
        expected = "a template that names a field of the items, such as {question}"
        named = bool(NAME.search(self.template))
        yield Rule(named, f"{where}.template", repr(self.template), expected)

    def item(self, row: dict[str, Any], where: str) -> Any:
        """Makes an item (`Item`) of an object of the file.

        Raises:
          DataError: names the line that lacks a field or has a wrong one.
        """
        raise NotImplementedError

    def items(self, file: str) -> list[Any]:
        """Reads the items of a file.

        Raises:
          DataError: a line that is no item, or there is none.
        """
        lines = inputs.read_lines(Path(file), lambda line: None)
        expected = "a JSON object with the fields that the templates name"
        found = [
            self.item(inputs.parse_object(line, expected), line.where)
            for line in lines
            if line.text.strip()
        ]
        if not found:
            raise DataError(file, "no item", "at least one")
        return found

    def examples(self, items: Sequence[Item]) -> list[str]:
        """Returns what stands before each item: the description and its examples.

        Raises:
          DataError: there are fewer other items than `shots`.
        """
        own = self.shots_file is None
        pool = items if self.shots_file is None else self.items(self.shots_file)
        if self.shots > len(pool) - own:
            found = f"{len(pool)} items"
            expected = f"{self.shots + own} or more, for shots={self.shots}"
            raise DataError(self.shots_file or self.file, found, expected)
        found_examples = []
        for number in range(len(items)):
            rng = np.random.default_rng((self.seed, number))
            others = [n for n in range(len(pool)) if not (own and n == number)]
            drawn = rng.permutation(others)[: self.shots].tolist()
            parts = [self.description] if self.description else []
            parts += [pool[int(n)].solved for n in drawn]
            found_examples.append("".join(part + self.separator for part in parts))
        return found_examples


def write_rows(rows: Sequence[Mapping[str, Any]], out: base.Outputs) -> None:
    """Writes the items with what was found for them, as lines of JSON."""
    if jax.process_index() == 0:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_text(out.samples.with_suffix(".jsonl"), "".join(lines))


def shares(
    name: str, right: int, count: int, level: float = 0.95
) -> Iterator[tuple[str, float]]:
    """Yields a share, its standard error, and Wilson's interval."""
    share = right / count
    yield name, share
    spread = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.nan
    yield f"{name}_stderr", spread
    yield from statistics.wilson(right, count, level).named(name)


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Puts the fields of an item into a template.

    Raises:
      DataError: the item lacks a field, or it is neither a text nor a number.
    """

    def value(name: re.Match) -> str:
        found = value_at(row, name[1])
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            given = ", ".join(map(repr, row))
            expected = f"a text or a number {name[1]!r}, which the template names"
            raise DataError(where, f"the fields {given}", expected)
        return str(found)

    return NAME.sub(value, template)
