"""Word and character error rates: the edit distance between references and hypotheses.

An error rate is the number of substitutions, deletions and insertions that make the
hypotheses of a corpus its references, divided by the words (characters) of the
references.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

# Above every number of insertions in a text, so that a sum tells both numbers.
EDIT = 1 << 32


class Errors(NamedTuple):
    """The errors of texts, and the length of their references.

    Attributes:
      substitutions, deletions, insertions: of the alignments with the fewest errors,
        one with the fewest insertions.
      length: words or characters of the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def total(self) -> int:
        """The edit distance (Levenshtein 1966)."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """The errors per word of the references; NaN where they have none."""
        return self.total / self.length if self.length else float("nan")


def add(errors: Sequence[Errors]) -> Errors:
    """Adds up the errors of texts."""
    return Errors(*(sum(column) for column in zip(Errors(0, 0, 0, 0), *errors)))


def count(
    reference: Sequence[str], hypotheses: Sequence[Sequence[str]]
) -> list[Errors]:
    """Counts the errors of several hypotheses for one reference.

    The table of the edit distance is computed by rows, for all hypotheses at once.

    Args:
      reference, hypotheses: words, or the characters of a text.
    """
    ids = {token: n for n, token in enumerate(dict.fromkeys(reference))}
    longest = max(map(len, hypotheses), default=0)
    table = np.full((len(hypotheses), longest), -1, np.int64)
    for row, hypothesis in enumerate(hypotheses):
        table[row, : len(hypothesis)] = [ids.get(token, -1) for token in hypothesis]
    steps = np.arange(longest + 1, dtype=np.int64) * (EDIT + 1)
    costs = np.broadcast_to(steps, (len(hypotheses), longest + 1)).copy()
    for token in reference:
        kept = costs[:, :-1] + np.where(table == ids[token], 0, EDIT)
        costs += EDIT  # a deletion
        np.minimum(costs[:, 1:], kept, out=costs[:, 1:])
        # Insertions: the least of all entries to the left, each with its steps.
        costs = np.minimum.accumulate(costs - steps, axis=1) + steps
    lengths = np.asarray([len(h) for h in hypotheses], np.int64)
    ends = costs[np.arange(len(hypotheses)), lengths]
    return [
        _errors(int(total), int(inserted), len(reference), int(length))
        for total, inserted, length in zip(*_split(ends), lengths)
    ]


def _split(costs: Int64[np.ndarray, "_"]) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(costs, EDIT)


def _errors(total: int, inserted: int, reference: int, hypothesis: int) -> Errors:
    deleted = inserted + reference - hypothesis
    return Errors(total - inserted - deleted, deleted, inserted, reference)


def plain(text: str) -> str:
    """Returns a text in lower case, without marks other than apostrophes in words."""
    return re.sub(r"(?<!\w)'|'(?!\w)|[^\w\s']", " ", text.lower())


# The forms of a text in which words are compared.
FORMS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": str.lower,
    "plain": plain,
}
