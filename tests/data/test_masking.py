"""lm.data.masking: which tokens are chosen, as properties of each way to choose."""

import inspect

import numpy as np
import pytest

from lm.data import masking

WAYS = {
    name: way
    for name, way in inspect.getmembers(masking, inspect.isfunction)
    if not name.startswith("_")
}
# Words of 1, 3, 2, 1 and 4 tokens, with a gap (a special token) within the second.
POSITIONS = np.array([1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12])
STARTS = np.array([1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0], bool)
WORDS = [{1}, {2, 3}, {5}, {6, 7}, {8}, {9, 10, 11, 12}]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("count", [1, 4, 11])
def test_sorted_distinct_candidates_up_to_the_count(way, count):
    for seed in range(50):
        chosen = way(POSITIONS, STARTS, count, np.random.default_rng(seed)).tolist()
        assert 1 <= len(chosen) <= count
        assert chosen == sorted({*chosen}) and {*chosen} <= {*POSITIONS.tolist()}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_candidate_gives_none(way):
    none = way(POSITIONS[:0], STARTS[:0], 1, np.random.default_rng(0))
    assert none.dtype == POSITIONS.dtype and not len(none)


def test_spans_choose_the_count_in_runs_of_words():
    lengths = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        chosen = {*masking.spans(np.arange(200), np.ones(200, bool), 30, rng).tolist()}
        assert len(chosen) == 30
        ends = [n for n in chosen if n + 1 not in chosen]
        lengths.append(30 / len(ends))
    # Of runs of 3.8 words on average (p = 0.2, at most 10), some of which touch;
    # single tokens would give runs of 1.2.
    assert 3.2 < np.mean(lengths) < 5.2


def test_spans_are_whole_words_but_for_the_last():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        chosen = {*masking.spans(POSITIONS, STARTS, 6, rng).tolist()}
        assert sum(bool(word & chosen) and not word <= chosen for word in WORDS) <= 1
