"""Exact search against brute force, ties, and fused lists by hand."""

import numpy as np
import pytest

from lm.metrics import ranking
from lm.retrieval import ranks
from lm.retrieval.ranks import Found

IDS = [str(n) for n in range(50)]


def brute_force(queries, vectors, ids, count):
    """The ids found for each query, by sorting all documents as trec_eval does."""
    scores = np.einsum("qd,nd->qn", queries, vectors)
    return [ranking.ranked(dict(zip(ids, row.tolist())))[:count] for row in scores]


@pytest.mark.parametrize("count", [1, 7, 50, 80])
@pytest.mark.parametrize("block", [3, 16, 1000])
def test_search_is_exact(count, block):
    # Small whole numbers: sums are exact, and there are many ties.
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (50, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
    places = ranks.places_of(IDS)
    found = ranks.search_vectors(queries, vectors, places, count, block)
    expected = brute_force(queries, vectors, IDS, count)
    assert [[IDS[row] for row in one.rows] for one in found] == expected
    for query, one in zip(queries, found):
        np.testing.assert_array_equal(one.scores, vectors[one.rows] @ query)


def test_of_ties_the_larger_ids_are_kept():
    places = ranks.places_of(["b", "10", "9", "c", "a"])
    found = ranks.best(np.arange(5), np.ones(5), places, 3)
    assert found.rows.tolist() == [3, 0, 4]  # c, b, a; then 9 and 10
    assert ranks.best(np.arange(5), np.arange(5.0), places, 2).rows.tolist() == [4, 3]


def test_scores_that_differ_less_than_single_precision_tie():
    found = ranks.best(np.arange(2), np.array([1.0, 1 - 1e-9]), np.array([1, 0]), 2)
    assert found.rows.tolist() == [1, 0]


def test_nothing_to_search():
    places = ranks.places_of([])
    none = np.zeros((0, 4), np.float32)
    assert ranks.search_vectors(none, none, places, 3) == []
    (found,) = ranks.search_vectors(np.ones((1, 4), np.float32), none, places, 3)
    assert not len(found.rows)


def test_reciprocal_ranks_by_hand():
    scores = np.zeros(3, np.float32)
    lists = [Found(np.array([2, 0, 1]), scores), Found(np.array([0, 3]), scores[:2])]
    found = ranks.fuse(lists, np.arange(4), 3, constant=60)
    expected = {0: 1 / 62 + 1 / 61, 2: 1 / 61, 3: 1 / 62}
    assert found.rows.tolist() == [*expected]
    np.testing.assert_allclose(found.scores, [*expected.values()], rtol=1e-6)
