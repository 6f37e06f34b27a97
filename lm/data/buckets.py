"""Rows of similar length in one batch, so that little of it is padding.

A batch is padded to the least of a few lengths that holds all its rows; each of them is
a shape that is compiled once. The padding changes no loss: segment 0 is never seen.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# The arrays that have a value for each position of a row, beside their encoder's.
ALONG = ("inputs", "positions", "segment_ids", "token_types", "prefix")
LEAST = 16  # positions of the shortest row
SIDES = ("", "source_")
GROUP = 32  # batches; training rows are sorted by length among those of so many

# For each side of an example (the source first, if it has one) how many positions each
# row needs, (rows,), and how many its arrays have at most.
RowLengths = tuple[tuple[np.ndarray, int], ...]


def sizes() -> Iterator[int]:
    """Yields 16, 24, 32, 48, 64, 96, ...: two for each doubling.

    Each compiled shape costs seconds, and with these the padding is a fifth of a row on
    average.
    """
    for power in itertools.count():
        yield LEAST << power
        yield LEAST * 3 // 2 << power


def round_up(length: int, most: int, multiple: int = 1) -> int:
    """Returns the least of `sizes` that is no less, at most `most`.

    Args:
      multiple: to which the size is rounded up, where it is less than `most`.
    """
    size = next(size for size in sizes() if size >= length)
    return min(math.ceil(size / multiple) * multiple, most)


# ── The rows of an index ────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The lengths to which the rows of a stream are padded.

    Attributes:
      shapes: the lengths of all sides, in ascending order.
      least: for each source, the first of the shapes that holds each row, (rows,).
      totals: for each source, the positions of a row over all sides, (rows,).
    """

    shapes: tuple[tuple[int, ...], ...]
    least: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    totals: tuple[np.ndarray, ...] = dataclasses.field(repr=False)

    def lengths(self, rows: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Returns the lengths of a batch of rows, each given as (source, row)."""
        return self.shapes[max(self.least[source][row] for source, row in rows)]

    def order(self, rows: Sequence[tuple[int, int]]) -> np.ndarray:
        """Returns the numbers of the rows from the shortest to the longest."""
        return np.argsort([self.totals[s][row] for s, row in rows], kind="stable")


def make_buckets(
    lengths: Sequence[RowLengths], count: int, multiple: int
) -> Buckets | None:
    """Chooses the shapes for the rows of some sources; None where there is only one.

    Args:
      lengths: of the rows of each source.
      count: how many shapes there are at most.
      multiple: which all lengths but the longest are multiples of.
    """
    longest = [most for _, most in lengths[0]]
    shapes = make_shapes(longest, count, multiple)
    if len(shapes) == 1:
        return None
    least, totals = [], []
    for sides in lengths:
        needed = [np.minimum(positions, most) for positions, most in sides]
        fits = [np.searchsorted(side, n) for side, n in zip(zip(*shapes), needed)]
        least.append(np.max(fits, axis=0))
        totals.append(np.sum(needed, axis=0))
    return Buckets(shapes, tuple(least), tuple(totals))


def make_shapes(
    longest: Sequence[int], count: int, multiple: int
) -> tuple[tuple[int, ...], ...]:
    """Returns at most `count` shapes; the last one is `longest`, others have `sizes`.

    The k-th shape from the end has the k-th size from the end on each of its sides.
    """
    sides = []
    for most in longest:
        smaller = itertools.takewhile(functools.partial(operator.gt, most), sizes())
        steps = {math.ceil(size / multiple) * multiple for size in smaller}
        fits = sorted(size for size in steps if size < most)
        sides.append([most, *reversed(fits)][:count])
    shapes = itertools.zip_longest(*sides)
    last = [side[-1] for side in sides]
    return tuple(
        tuple(size or least for size, least in zip(shape, last)) for shape in shapes
    )[::-1]


# ── Single examples ─────────────────────────────────────────────────────────────────


def used(example: Mapping[str, np.ndarray]) -> int:
    """Returns how many positions of a row are used, on its longer side."""
    ends = [
        np.flatnonzero(example[f"{side}segment_ids"])
        for side in SIDES
        if f"{side}segment_ids" in example
    ]
    return max((int(end[-1]) + 1 if len(end) else 1 for end in ends), default=1)


def cut(
    example: Mapping[str, np.ndarray], length: int, more: frozenset[str] = frozenset()
) -> dict[str, np.ndarray]:
    """Cuts the padding of a row down to `length` positions on each side.

    Args:
      more: arrays with a value for each position beside ALONG.
    """
    along = {side + name for side in SIDES for name in ALONG} | more
    return {
        name: array[:length] if name in along else array
        for name, array in example.items()
    }
