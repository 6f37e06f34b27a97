"""Labelled brackets of trees, as EVALB counts them (Sekine and Collins 1997)."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

Span = tuple[str, int, int]  # label, and the words from start to before end


class Brackets(NamedTuple):
    """Counts over sentences: brackets that agree, of the parses and of the trees.

    Attributes:
      exact: sentences whose brackets all agree.
    """

    right: int = 0
    found: int = 0
    wanted: int = 0
    exact: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        both = self.found + self.wanted
        return 2 * self.right / both if both else 0.0


def count(parse: Iterable[Span] | None, tree: Iterable[Span]) -> Brackets:
    """Compares the brackets of a sentence; each agrees with one equal bracket at most.

    Args:
      parse: None for a sentence without a parse, whose brackets are all missed.
    """
    gold, guess = Counter(tree), Counter(parse or ())
    exact = int(parse is not None and gold == guess)
    return Brackets((gold & guess).total(), guess.total(), gold.total(), exact)


def add(one: Brackets, other: Brackets) -> Brackets:
    """Adds counts."""
    return Brackets(*(a + b for a, b in zip(one, other)))
