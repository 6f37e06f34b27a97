"""Examples by their number: which row each is made of, and with which draws."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lm.data import index as indices
from lm.data.buckets import GROUP, Buckets
from lm.data.lanes import DrawnWindows, Lanes
from lm.data.mixture import Mixture
from lm.data.transforms import Example
from lm.data.windows import read_span


@dataclasses.dataclass(frozen=True)
class Stream:
    """Examples by their number: endless and shuffled, or an evaluation set in order.

    Args:
      indices: the rows of each source.
      mixture: their proportions; None is one source after the other.
      transforms: for each source, what makes an example of a row.
      seed: of the shuffle and of every draw within an example.
      lanes: the order "stream", or None. Rows then have `passed`, the rows that their
        lane has read before them.
      drawn: the same with windows of drawn lengths, over the one index. They have
        `before`, the tokens that their lane has read before them.
      buckets: the lengths to which rows are padded; None is the full length.
      group: rows of a batch, by which the examples are sorted by length; 0: they are
        not sorted.
    """

    indices: tuple[indices.Index, ...]
    mixture: Mixture | None
    transforms: tuple[tuple[Callable, ...], ...]
    seed: int
    lanes: Lanes | None = None
    drawn: DrawnWindows | None = None
    buckets: Buckets | None = None
    group: int = 0

    def __len__(self) -> int:
        """Rows of all sources: an epoch, if there is only one source.

        Of windows of drawn lengths it is an epoch too.
        """
        if self.drawn is not None:
            return self.drawn.steps * self.drawn.count
        return sum(map(len, self.indices))

    @functools.cached_property
    def _orders(self) -> list[Any]:
        import grain

        rows = [grain.MapDataset.range(len(index)) for index in self.indices]
        return [r.shuffle(seed=self.seed + i).repeat() for i, r in enumerate(rows)]

    def locate(self, n: int) -> tuple[int, int, int]:
        """Returns (source, epoch, row of its index) of example n.

        An empty example of a lane is made of the row before it.
        """
        if self.buckets is not None and self.group:
            group, place = divmod(n, self._group_size)
            n = int(self._sorted(group)[place])
        return self._locate(n)

    @functools.cached_property
    def _group_size(self) -> int:
        """The examples that are sorted together: not more than an epoch, if it can."""
        return self.group * max(min(GROUP, len(self) // self.group), 1)

    @functools.cached_property
    def _sorted(self) -> Callable[[int], np.ndarray]:
        """Returns the numbers of the examples of a group of batches, in their order."""

        def order(group: int) -> np.ndarray:
            size = self._group_size
            numbers = np.arange(group * size, (group + 1) * size)
            by_length = numbers[self._by_length(numbers)].reshape(-1, self.group)
            # No row has this counter, whose last word would be its source.
            counter = [0, group, 0, len(self.indices)]
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
            return rng.permutation(by_length).ravel()

        return functools.lru_cache(maxsize=8)(order)

    def _by_length(self, numbers: Iterable[int]) -> np.ndarray:
        assert self.buckets is not None
        return self.buckets.order([self._locate(n)[::2] for n in numbers])

    @functools.cached_property
    def from_longest(self) -> Callable[[int], np.ndarray | None]:
        """Returns the first so many numbers from the longest row to the shortest.

        The order is computed once for all evaluations. None: the rows are not known to
        differ in length.
        """

        def order(rows: int) -> np.ndarray | None:
            return None if self.buckets is None else self._by_length(range(rows))[::-1]

        return functools.cache(order)

    def lengths(self, numbers: Iterable[int]) -> tuple[int, ...] | None:
        """Returns to which lengths a batch of these examples is padded, if not full."""
        if self.drawn is not None:
            return (self.drawn.padded(next(iter(numbers))),)
        if self.buckets is None:
            return None
        return self.buckets.lengths([self.locate(n)[::2] for n in numbers])

    def _locate(self, n: int) -> tuple[int, int, int]:
        """Returns what `locate` does, before examples are sorted."""
        if self.drawn is not None:
            span = self.drawn.locate(n)
            return 0, span.epoch, span.start // self.drawn.length
        if self.lanes is not None:
            epoch, _, row, _ = self.lanes.locate(n)
            if row is None:
                row = self.lanes.locate(max(n - self.lanes.count, 0)).row
            source, row = self._nth(row or 0)
            return source, epoch, row
        if self.mixture is None:
            source, row = self._nth(n)
            return source, 0, row
        source, place = self.mixture.locate(n)
        row = int(self._orders[source][place])
        return source, place // len(self.indices[source]), row

    def _nth(self, n: int) -> tuple[int, int]:
        """Returns source and row of the n-th row, one source after the other."""
        for source, index in enumerate(self.indices):
            if n < len(index):
                return source, n
            n -= len(index)
        raise IndexError(n)

    def describe_batch(self, number: int, size: int) -> str:
        """Returns the number of a batch and its examples, for an error line."""
        places = (self.locate(number * size + row) for row in range(size))
        examples = " ".join(":".join(map(str, place)) for place in places)
        return f"batch {number} of the examples (source:epoch:row) {examples}"

    def example(self, n: int, lengths: tuple[int, ...] | None = None) -> Example:
        """Makes example n of its row, with draws that depend on (seed, epoch, row).

        Args:
          lengths: to which its arrays are padded; None is the full length.
        """
        source, epoch, row = self.locate(n)
        bits = np.random.Philox(key=self.seed, counter=[0, row, epoch, source])
        rng = np.random.Generator(bits)
        if self.drawn is not None:
            _, before, start, size = self.drawn.locate(n)
            example = read_span(self.indices[0], self.drawn.length, start, size)
            example["before"], lengths = before, lengths or self.lengths([n])
        else:
            example = self.indices[source].row(row)
        if lengths is not None:
            example["lengths"] = lengths
        counts = True
        if self.lanes is not None:
            _, example["passed"], _, counts = self.lanes.locate(n)
        for transform in self.transforms[source]:
            example = transform(example, rng)
        example |= {"example_ids": np.asarray([source, epoch, row])}
        return example if counts else without_weight(example)

    def evaluated(self, rows: int) -> int:
        """Returns the number of examples that hold the first `rows` rows."""
        return rows if self.lanes is None else self.lanes.steps * self.lanes.count


def without_weight(example: Example) -> Example:
    """Returns the example as padding: arrays named `...weights` are zero."""
    return {k: v * 0 if k.endswith("weights") else v for k, v in example.items()}
