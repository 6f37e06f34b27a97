"""Proportions, and that a place is known without counting."""

import collections

import pytest

from lm.data.mixture import Mixture


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (3.0, 1.0), (0.7, 0.2, 0.1)])
def test_proportions(weights):
    mixture = Mixture(weights)
    counts = collections.Counter(mixture.locate(n)[0] for n in range(2000))
    for source, weight in enumerate(weights):
        assert counts[source] == pytest.approx(2000 * weight / sum(weights), abs=2)


def test_each_source_is_read_in_order_without_gaps():
    mixture = Mixture((5.0, 2.0, 1.0))
    seen = collections.Counter()
    for n in range(2500):
        source, place = mixture.locate(n)
        assert place == seen[source]
        seen[source] += 1


def test_sources_are_spread_evenly():
    mixture = Mixture((3.0, 1.0))
    sources = [mixture.locate(n)[0] for n in range(400)]
    for start in range(0, 400, 20):
        assert 4 <= sum(sources[start : start + 20]) <= 6


def test_the_smallest_source_has_its_turn():
    mixture = Mixture((1.0, 1e-6))
    assert sum(mixture.locate(n)[0] for n in range(1000)) == 1
