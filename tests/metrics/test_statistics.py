"""Intervals and tests: coverage on simulated data, and values by other programs."""

import numpy as np
import pytest
from scipy import stats

from lm.metrics import statistics


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Of 200 sets of 80 examples with an accuracy of 0.7, near 95 % of intervals."""
    rng, truth, held, narrow = np.random.default_rng(0), 0.7, 0, 0
    for seed in range(200):
        right = rng.random(80) < truth
        options = {"resamples": 200, "seed": seed}
        found = statistics.bootstrap(lambda n, r=right: r[n].mean(), 80, **options)
        held += found.holds(truth)
        half = statistics.bootstrap(
            lambda n, r=right: r[n].mean(), 80, level=0.5, **options
        )
        narrow += half.holds(truth)
    assert 0.90 <= held / 200 <= 0.985
    assert 0.38 <= narrow / 200 <= 0.62


def test_sums_of_resamples_are_those_of_the_bootstrap():
    rng = np.random.default_rng(3)
    parts = np.stack([rng.gamma(2.0, size=30), rng.integers(0, 3, 30)], axis=1)
    means = statistics.ratios(statistics.draw(parts, 200, seed=5))
    wanted = statistics.bootstrap(
        lambda n: parts[n, 0].sum() / parts[n, 1].sum(), 30, resamples=200, seed=5
    )
    assert statistics.percentiles(means, 0.95) == pytest.approx(wanted, rel=1e-12)
    undefined = statistics.ratios(np.array([[1.0, 0.0], [3.0, 2.0]]))
    assert np.isnan(undefined[0]) and undefined[1] == 1.5


def test_an_interval_of_a_mean_over_tokens_holds_the_truth():
    """Of 200 sets of 60 texts, long ones with lower losses of their tokens."""
    rng, held = np.random.default_rng(1), 0
    for seed in range(200):
        tokens = rng.integers(5, 50, 60)
        nats = tokens * rng.normal(5 - tokens / 50, 0.4)
        drawn = statistics.draw(np.stack([nats, tokens], axis=1), 300, seed)
        held += statistics.percentiles(statistics.ratios(drawn), 0.95).holds(TRUTH)
    assert 0.90 <= held / 200 <= 0.985


LENGTHS = np.arange(5, 50)
TRUTH = float((LENGTHS * (5 - LENGTHS / 50)).sum() / LENGTHS.sum())


def test_neighbours_are_added_up_to_few_groups():
    parts = np.arange(14.0).reshape(7, 2)
    assert statistics.grouped(parts, 7) is parts
    found = statistics.grouped(parts, 3)
    assert found.tolist() == [[6, 9], [24, 27], [12, 13]]


def test_mcnemar_is_a_binomial_test():
    for first, second in ((0, 0), (1, 0), (5, 5), (3, 11), (40, 21), (2000, 2100)):
        wanted = stats.binomtest(first, first + second).pvalue if first else None
        found = statistics.mcnemar(first, second)
        assert found == pytest.approx(1.0 if wanted is None else wanted, rel=1e-6)


def test_sign_flip_is_the_permutation_test_of_scipy():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.6, 1, 12)

    def flipped(swap):
        return float(np.where(swap, -differences, differences).mean())

    wanted = stats.permutation_test(
        (differences,),
        lambda x: x.mean(),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue  # all 4,096 of them
    found = statistics.sign_flip(flipped, 12, rounds=4000)
    assert found == pytest.approx(wanted, abs=0.02)
    assert statistics.sign_flip(lambda swap: 0.0, 12, rounds=50) == 1.0


def test_holm_and_the_effect_size_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.9]) == [0.04, 0.09, 0.09, 0.9]
    assert statistics.holm([0.5, 0.6]) == [1.0, 1.0]
    assert statistics.effect_size(np.array([1.0, 2.0, 3.0])) == 2.0
    assert np.isnan(statistics.effect_size(np.ones(3)))
    assert statistics.effect_size(np.zeros(3)) == 0.0
    assert np.isnan(statistics.bootstrap(lambda n: np.nan, 3, resamples=5).low)


def test_a_spread_is_that_of_scipy():
    values = [0.81, 0.79, 0.84, 0.80, 0.95]
    found = statistics.spread(values)
    wanted = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found.interval == pytest.approx(wanted)
    assert (found.n, found.median) == (5, 0.81)
    assert found.mean == pytest.approx(0.838)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    wider = statistics.spread(values, 0.99).interval
    assert wider.low < found.interval.low and wider.high > found.interval.high
    one, none = statistics.spread([0.5]), statistics.spread([])
    assert (one.n, one.mean, one.median) == (1, 0.5, 0.5)
    assert np.isnan([one.deviation, *one.interval, none.mean, none.median]).all()


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    rng, held = np.random.default_rng(2), 0
    for _ in range(1000):
        held += statistics.spread(rng.normal(0.8, 0.02, 5).tolist()).interval.holds(0.8)
    assert 0.93 <= held / 1000 <= 0.97
