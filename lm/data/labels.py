"""Labels: how the column of a record becomes the target of its row."""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lm.data.index import Value
from lm.data.sources.base import Record, column_of
from lm.errors import DataError


@runtime_checkable
class Labels(Protocol):
    """A frozen dataclass, part of an index's fingerprint.

    Attributes:
      column: the field of a record with the label.
    """

    @property
    def column(self) -> str: ...

    def of(self, record: Record) -> Value:
        """Returns what a row keeps of the label; DataError where it has none."""

    def target(self, kept: Any) -> np.ndarray:
        """Returns the target of a row, by what it keeps."""


@dataclasses.dataclass(frozen=True)
class Class:
    """One class of several, as its number.

    Args:
      names: the labels in the order of their ids; empty where they are ids already.
      classes: how many ids there are.
    """

    column: str
    names: tuple[str, ...]
    classes: int

    def of(self, record: Record) -> int:
        return self.number(column_of(record, self.column), record)

    def number(self, found: Any, record: Record) -> int:
        """Returns the id of a label.

        Raises:
          DataError: there is no such label.
        """
        if self.names:
            if str(found) not in self.names:
                raise DataError(
                    record.where,
                    f"{self.column} {found!r:.80}",
                    f"one of {', '.join(self.names)}",
                    "list every label in objective.labels",
                )
            return self.names.index(str(found))
        try:
            label = int(found)
        except (ValueError, TypeError):  # a word, or a list
            label = -1
        if not 0 <= label < self.classes or str(label) != str(found).strip():
            raise DataError(
                record.where,
                f"{self.column} {found!r:.80}",
                f"a whole number from 0 to {self.classes - 1}",
                "set objective.classes, or name the labels in objective.labels",
            )
        return label

    def target(self, kept: Any) -> np.ndarray:
        return np.asarray(kept, np.int32)


@dataclasses.dataclass(frozen=True)
class Several:
    """Any number of classes at once, as a list or as a text with separators.

    Args:
      one: a class of them.
      separator: what parts the labels of a text, such as "toxic,insult".
    """

    one: Class
    separator: str

    @property
    def column(self) -> str:
        return self.one.column

    def of(self, record: Record) -> list[int]:
        found = column_of(record, self.column)
        if isinstance(found, str):
            found = [part.strip() for part in found.split(self.separator)]
            found = [part for part in found if part]
        several = found if isinstance(found, list | tuple) else [found]
        return sorted({self.one.number(label, record) for label in several})

    def target(self, kept: Any) -> np.ndarray:
        array = np.zeros(self.one.classes, np.float32)
        array[kept] = 1
        return array


@dataclasses.dataclass(frozen=True)
class Number:
    """A number, such as the similarity of two texts.

    Args:
      between: the least and the greatest label; () allows any number.
    """

    column: str
    between: tuple[float, ...] = ()

    def of(self, record: Record) -> float:
        return number_of(record, self.column, self.between, "objective.between")

    def target(self, kept: Any) -> np.ndarray:
        return np.asarray(kept, np.float32)


def number_of(
    record: Record, column: str, between: tuple[float, ...] = (), field: str = ""
) -> float:
    """Returns the number of a field, given as one or as a text.

    Args:
      between: the least and the greatest; () allows any finite number.
      field: the field of the config that says so, for the error.

    Raises:
      DataError: the field holds something else.
    """
    found = column_of(record, column)
    try:
        number = float(found)
    except (ValueError, TypeError):
        number = math.nan
    least, most = between or (-math.inf, math.inf)
    if isinstance(found, bool) or not (
        math.isfinite(number) and least <= number <= most
    ):
        expected = f"a number from {least:g} to {most:g} ({field})"
        raise DataError(
            record.where,
            f"{column} {found!r:.80}",
            expected if between else "a number",
        )
    return number
