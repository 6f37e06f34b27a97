"""The order "stream": rows that go on from batch to batch."""

import dataclasses
from typing import NamedTuple

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
