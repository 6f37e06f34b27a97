"""Packing: first fit of pieces into the most recent rows that still have room."""

from collections.abc import Iterator
from typing import Any

OPEN = 64  # rows that wait for more pieces at a time


class FirstFit:
    """Gathers pieces into rows; an item goes to the oldest open row that has room.

    Args:
      capacity: tokens that a row holds, on each of its sides.
      least: a row with at most so much room left, on any side, counts as full.
    """

    def __init__(self, capacity: tuple[int, ...], least: int):
        self._capacity, self._least = capacity, least
        self._open: list[tuple[tuple[int, ...], list[Any]]] = []

    def add(self, sizes: tuple[int, ...], item: Any) -> Iterator[list[Any]]:
        """Adds an item of `sizes` tokens, none above capacity; yields full rows."""
        at = next(
            (i for i, (left, _) in enumerate(self._open) if _fits(sizes, left)),
            len(self._open),
        )
        if at == len(self._open):
            self._open.append((self._capacity, []))
        left, items = self._open[at]
        items.append(item)
        left = tuple(room - size for size, room in zip(sizes, left))
        self._open[at] = (left, items)
        if min(left) <= self._least:
            yield self._open.pop(at)[1]
        elif len(self._open) > OPEN:
            yield self._open.pop(0)[1]

    def rest(self) -> Iterator[list[Any]]:
        """Yields the rows that are still open."""
        yield from (items for _, items in self._open)


def _fits(sizes: tuple[int, ...], left: tuple[int, ...]) -> bool:
    return all(size <= room for size, room in zip(sizes, left))
