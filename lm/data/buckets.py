"""Lengths of rows: a few shapes, so that short rows have little padding."""

from collections.abc import Mapping

import numpy as np

# The arrays that have a value for each position of a row, beside their encoder's.
ALONG = ("inputs", "positions", "segment_ids", "token_types", "prefix")
LEAST = 16  # positions of the shortest row
SIDES = ("", "source_")


def round_up(length: int, most: int) -> int:
    """Returns the least of 16, 24, 32, 48, 64, 96, ... that is no less, at most `most`.

    Each compiled shape costs seconds; of these there are two for each doubling, and
    the padding is a fifth of a row on average.
    """
    size = LEAST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, most)


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
