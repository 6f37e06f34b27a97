"""Chooses among hypotheses by a weighted sum of scores, and tunes the weights."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MOST = 200_000  # points of a grid


class Lists(NamedTuple):
    """The hypotheses of U utterances, at most H of each.

    Attributes:
      scores: (K, U, H) each hypothesis's scores, the first of which has weight 1; -inf
        in the first where there is no hypothesis.
      errors: (U, H) of each hypothesis.
    """

    scores: Float[np.ndarray, "K U H"]
    errors: Int[np.ndarray, "U H"]

    def choose(self, weights: Sequence[float]) -> Int[np.ndarray, "U"]:
        """Returns the best hypothesis of each utterance, the first of equal ones."""
        total = self.scores[0].copy()
        for weight, scores in zip(weights, self.scores[1:]):
            total += weight * scores
        return total.argmax(axis=1)

    def count(self, weights: Sequence[float]) -> int:
        """Counts the errors of the hypotheses that weights choose."""
        chosen = self.choose(weights)
        return int(self.errors[np.arange(len(chosen)), chosen].sum())


def pack(
    scores: Sequence[Float[np.ndarray, "K _"]], errors: Sequence[Sequence[int]]
) -> Lists:
    """Pads the scores and the errors of utterances to one size."""
    count, most = len(scores[0]), max(map(len, errors))
    padded = np.zeros((count, len(scores), most))
    padded[0] = -np.inf
    table = np.zeros((len(scores), most), np.int64)
    for n, (own, wrong) in enumerate(zip(scores, errors)):
        padded[:, n, : len(wrong)] = own
        table[n, : len(wrong)] = wrong
    return Lists(padded, table)


class Tuned(NamedTuple):
    """The weights with the fewest errors, and at which grid points they were found.

    Attributes:
      weights: of all scores but the first.
      grid: the best point of the grid, where the refinement began.
      errors: with `weights`.
    """

    weights: tuple[float, ...]
    grid: tuple[float, ...]
    errors: int


def tune(lists: Lists, grids: Sequence[Sequence[float]], rounds: int = 4) -> Tuned:
    """Finds weights with few errors: a grid, then steps of half the distance and less.

    The first of equal points of the grid is kept, and a step is taken only where it
    lowers the errors, so that the result depends on nothing but the lists.

    Args:
      grids: the values of each weight, ascending.
      rounds: how often the steps are halved; 0 keeps the best point of the grid.

    Raises:
      ValueError: the grid has more than MOST points.
    """
    if np.prod([float(len(grid)) for grid in grids]) > MOST:
        raise ValueError(f"more than {MOST} points")
    best = min(itertools.product(*grids), key=lists.count)
    steps = [float(np.diff(grid).min()) if len(grid) > 1 else 0.0 for grid in grids]
    here, errors = best, lists.count(best)
    for _ in range(rounds):
        steps = [step / 2 for step in steps]
        moved = True
        while moved:
            moved = False
            for place, step in enumerate(steps):
                for change in (-step, step) if step else ():
                    near = (*here[:place], here[place] + change, *here[place + 1 :])
                    if (found := lists.count(near)) < errors:
                        here, errors, moved = near, found, True
    return Tuned(here, best, errors)
