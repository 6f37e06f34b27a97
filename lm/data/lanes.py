"""The order "stream": rows that go on from batch to batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Tokens that a part of an evaluation stream reads before its own, without weight, so
# that its first targets have a context. The influence of what precedes them on a
# recurrent state is below the rounding of a figure.
WARM_UP = 256


class Place(NamedTuple):
    """Where an example of a lane is.

    Attributes:
      epoch: counted from 0.
      passed: the rows that the lane has read before it.
      row: of the index; None: the example is empty.
      counts: whether the row belongs to the lane, and is not only read before its own.
    """

    epoch: int
    passed: int
    row: int | None
    counts: bool


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The order "stream": the rows of an epoch, cut into `count` lanes of neighbours.

    Row r of every batch is taken from lane r. Each lane has rows // count rows, the
    first rows % count lanes one more; in the last step of an epoch the others give an
    empty example. The next epoch begins all lanes again.

    Args:
      count: the global batch size.
      rows: of all sources, or of those that are evaluated.
      warm: rows before those of a lane that it reads first, without weight.
    """

    count: int
    rows: int
    warm: int = 0

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        return -(-self.rows // self.count) + self.warm

    def locate(self, n: int) -> Place:
        """Returns the place of example n, which is step * count + lane."""
        step, lane = divmod(n, self.count)
        base, longer = divmod(self.rows, self.count)
        epoch, step = divmod(step, self.steps)
        first = lane * base + min(lane, longer)  # row of the lane
        at = step - self.warm
        passed = step - max(self.warm - first, 0)
        if first + at < 0 or at >= base + (lane < longer):
            return Place(epoch, max(passed, 0), None, counts=False)
        return Place(epoch, passed, first + at, counts=at >= 0)


class Span(NamedTuple):
    """Tokens of a lane that are read together.

    Attributes:
      epoch: counted from 0.
      passed: the tokens that the lane has read before them.
      start: the first of them, in the text.
      size: how many they are.
    """

    epoch: int
    passed: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class DrawnWindows:
    """Lanes that are cut at drawn places (Merity et al. 2018, section 5).

    With fixed windows the same tokens would stand last in theirs in every epoch, and
    never be learnt from by later ones. The length of a window is `length` with
    probability `WHOLE`, else half of that, plus normal noise of deviation `NOISE`,
    bounded to `LEAST` and `length` + 2 `NOISE`. All rows of a batch have the same, but
    for the last of an epoch, where some lanes have a token less.

    The lengths of an epoch depend on (seed, epoch) alone. They are stretched by one
    factor, of about a percent in a long text, so that together they are the lane: an
    epoch reads each token once, and every epoch has the same number of steps.

    Args:
      count: the global batch size.
      tokens: the inputs of the text.
      length: the length before it is drawn.
      seed: of the draws.
      multiple: of the lengths to which windows are padded.
    """

    count: int
    tokens: int
    length: int
    seed: int
    multiple: int = 1

    WHOLE, NOISE, LEAST = 0.95, 5.0, 5

    @property
    def _longest(self) -> int:
        """The tokens of the first lane."""
        return -(-self.tokens // self.count)

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        mean = (1 + self.WHOLE) / 2 * self.length
        return max(round(self._longest / mean), 1)

    @functools.cached_property
    def _borders(self) -> Callable[[int], np.ndarray]:
        """Returns where the windows of an epoch begin in a lane, and where it ends."""

        def borders(epoch: int) -> np.ndarray:
            # No row has this counter, whose last word would be its source.
            bits = np.random.Philox(key=self.seed, counter=[0, epoch, 0, 1 << 32])
            rng = np.random.Generator(bits)
            whole = rng.random(self.steps) < self.WHOLE
            base = np.where(whole, self.length, self.length / 2)
            most = self.length + 2 * self.NOISE
            drawn = np.clip(rng.normal(base, self.NOISE), self.LEAST, most)
            ends = np.cumsum(drawn)
            return np.rint([0, *ends * (self._longest / ends[-1])]).astype(int)

        return functools.lru_cache(maxsize=8)(borders)

    def locate(self, n: int) -> Span:
        """Returns the tokens of example n, which is step * count + lane."""
        step, lane = divmod(n, self.count)
        epoch, window = divmod(step, self.steps)
        base, longer = divmod(self.tokens, self.count)
        first, own = lane * base + min(lane, longer), base + (lane < longer)
        start, stop = np.minimum(self._borders(epoch)[window : window + 2], own)
        return Span(epoch, int(start), first + int(start), int(stop - start))

    def padded(self, n: int) -> int:
        """Returns to which length the batch of example n is padded: one of three.

        A window that is longer than all of them has its own length.
        """
        _, _, _, size = self.locate(n - n % self.count)
        half, room = self.length // 2, int(2 * self.NOISE) + 2
        shapes = (half + room, self.length, self.length + room)
        fits = next((shape for shape in shapes if shape >= size), size)
        return -(-fits // self.multiple) * self.multiple
