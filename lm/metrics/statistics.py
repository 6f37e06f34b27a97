"""Intervals, tests and effect sizes: how far a figure can be believed.

`Measure` is a function of examples: given their numbers (n,), a resample of them with
repetitions, it returns a metric.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Numbers = Int[np.ndarray, "n"]
Measure = Callable[[Numbers], float]


class Interval(NamedTuple):
    """The lower and the upper bound; NaN where the metric is not defined."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Tells whether the interval holds a value."""
        return self.low <= value <= self.high

    def named(self, metric: str) -> Iterator[tuple[str, float]]:
        """Yields the bounds with their names, those of the metric with an ending."""
        yield f"{metric}_low", self.low
        yield f"{metric}_high", self.high


UNDEFINED = Interval(math.nan, math.nan)


def bootstrap(
    measure: Measure,
    examples: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Computes the percentile interval of a metric over examples (Efron 1979).

    Examples are taken to be independent of each other. Resamples for which the metric
    is not defined are left out.

    Args:
      examples: how many there are; of none the interval is not defined.
      level: the probability that the interval is to hold the metric of the population.
    """
    if not examples:
        return UNDEFINED
    rng = np.random.default_rng(seed)
    found = np.array(
        [measure(rng.integers(examples, size=examples)) for _ in range(resamples)]
    )
    return percentiles(found, level)


def draw(
    parts: Shaped[np.ndarray, "n K"], resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "R K"]:
    """Sums the numbers of the examples of each resample.

    It is for metrics of sums over examples, which are many times faster so. The
    resamples are those of `bootstrap` with the same seed.

    Args:
      parts: K numbers of each example.
    """
    rng, count = np.random.default_rng(seed), len(parts)
    parts, sums = parts.astype(np.float64), np.empty((resamples, parts.shape[1]))
    for n in range(resamples):
        drawn = rng.integers(count, size=count)
        sums[n] = np.bincount(drawn, minlength=count) @ parts
    return sums


def grouped(parts: Shaped[np.ndarray, "n K"], most: int = 1 << 14):
    """Adds up neighbours, so that there are at most `most` rows.

    To draw a thousand times from so many takes a quarter of a second.
    """
    starts = np.arange(0, len(parts), -(-len(parts) // most))
    return np.add.reduceat(parts, starts) if len(starts) < len(parts) else parts


def ratios(sums: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, "R"]:
    """Divides the first of two sums by the second; NaN where that is 0."""
    over, under = sums.T
    return np.divide(over, under, out=np.full(len(sums), np.nan), where=under != 0)


def percentiles(values: Float[np.ndarray, "n"], level: float) -> Interval:
    """Returns the interval that holds the middle `level` of the values."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan)
    outside = (1 - level) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))


def sign_flip(
    difference: Callable[[Bool[np.ndarray, "n"]], float],
    examples: int,
    *,
    rounds: int = 10_000,
    seed: int = 0,
) -> float:
    """Computes the p-value of a difference by approximate randomisation (Noreen 1989).

    The hypothesis is that the two systems are interchangeable on each example. The test
    is two-sided, and its smallest value is 1 / (rounds + 1).

    Args:
      difference: of the metrics, after the systems are swapped on some examples.
    """
    rng = np.random.default_rng(seed)
    found = abs(difference(np.zeros(examples, bool)))
    # A value that differs by rounding alone is as extreme.
    least = found - 1e-12 * max(found, 1.0)
    more = sum(
        abs(difference(rng.random(examples) < 0.5)) >= least for _ in range(rounds)
    )
    return (more + 1) / (rounds + 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """Computes the exact two-sided p-value of McNemar's test (1947).

    Args:
      only_first, only_second: examples that one of the two systems has right and the
        other has not.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        for i in range(k + 1)
    ]
    tail = sum(math.exp(each - n * math.log(2)) for each in logs)
    return min(1.0, 2 * tail)


def wilson(right: int, examples: int, level: float = 0.95) -> Interval:
    """Computes the interval of a share (Wilson 1927); of none it is not defined."""
    if not examples:
        return UNDEFINED
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = right / examples, 1 + z**2 / examples
    middle = (share + z**2 / (2 * examples)) / scale
    inner = share * (1 - share) / examples + z**2 / (4 * examples**2)
    half = z * math.sqrt(inner) / scale
    return Interval(middle - half, middle + half)


class Spread(NamedTuple):
    """The values of repeated runs in a few figures; NaN where one is not defined.

    Attributes:
      n: how many values there are.
      mean, median: of the values.
      deviation: their standard deviation (n - 1), NaN of one value.
      interval: of the mean, by Student's t; NaN of one value.
    """

    n: int
    mean: float
    median: float
    deviation: float
    interval: Interval


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Describes the values of repeated runs.

    The interval (Student 1908) takes them to be independent and near to a normal
    distribution.

    Args:
      level: the probability that the interval is to hold the mean of all such runs.
    """
    array, n = np.array(values, np.float64), len(values)
    if not n:
        return Spread(0, math.nan, math.nan, math.nan, UNDEFINED)
    mean, median = float(array.mean()), float(np.median(array))
    if n == 1:
        return Spread(1, mean, median, math.nan, UNDEFINED)
    from scipy import special  # Its import takes longer than all of this.

    deviation = float(array.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    return Spread(n, mean, median, deviation, Interval(mean - half, mean + half))


def effect_size(differences: Float[np.ndarray, "n"]) -> float:
    """Computes the mean of paired differences in standard deviations (Cohen's d_z).

    It is 0 where no pair differs, and NaN where all differ by the same.
    """
    if not differences.any():
        return 0.0
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979); in the order given."""
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(order):
        highest = max(highest, (len(p_values) - place) * p_values[number])
        corrected[number] = min(1.0, highest)
    return corrected
