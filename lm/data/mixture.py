"""Mixture of sources: a fixed pattern that gives the source of the n-th example."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Mixes examples of several sources in given proportions, spread evenly.

    The pattern repeats every `period` examples, so a weight is honoured to within
    1 / period; every source has at least one example in a period.

    Args:
      weights: one positive weight per source; only their ratios matter.
    """

    weights: tuple[float, ...]
    period: int = 1000

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The source of each example of a period, its rank, and counts by source."""
        share = np.asarray(self.weights) / np.sum(self.weights)
        counts = np.maximum(1, np.floor(share * self.period)).astype(int)
        while counts.sum() != self.period:
            gap = share * self.period - counts
            step = 1 if counts.sum() < self.period else -1
            counts[np.argmax(gap * step)] += step
        # The k-th of n examples of a source stands at (k + 1/2) / n of the period.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(n) for n in counts])
        order = np.lexsort((sources, places))
        return sources[order], ranks[order], counts

    def locate(self, n: int) -> tuple[int, int]:
        """Returns the source of example n, and how many of that source precede it."""
        if len(self.weights) == 1:
            return 0, n
        sources, ranks, counts = self._pattern
        turn, place = divmod(n, self.period)
        source = sources[place]
        return int(source), int(turn * counts[source] + ranks[place])
