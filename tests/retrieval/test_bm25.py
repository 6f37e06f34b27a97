"""Terms of texts, and BM25 by hand and on Cranfield."""

import math

import numpy as np
import pytest

from lm.retrieval import bm25, ranks
from lm.retrieval.terms import Terms

DOCUMENTS = [["a", "b", "a"], ["b", "c"], ["d"]]  # lengths 3, 2, 1: mean 2


def weight(documents, count, length, k1=1.2, b=0.75):
    """Of a term in `documents` of 3 documents, `count` times in one of a length."""
    idf = math.log(1 + (3 - documents + 0.5) / (documents + 0.5))
    return idf * count * (k1 + 1) / (count + k1 * (1 - b + b * length / 2))


@pytest.mark.parametrize(
    "query, expected",
    [
        (["a"], {0: weight(1, 2, 3)}),
        (["b"], {1: weight(2, 1, 2), 0: weight(2, 1, 3)}),
        (["a", "b"], {0: weight(1, 2, 3) + weight(2, 1, 3), 1: weight(2, 1, 2)}),
        (["d", "d", "x"], {2: 2 * weight(1, 1, 1)}),
        (["x"], {}),
        ([], {}),
    ],
)
def test_scores_by_hand(query, expected):
    index = bm25.BM25(bm25.count(DOCUMENTS))
    places = ranks.places_of(["0", "1", "2"])
    (found,) = index.search([query], places, 3)
    assert found.rows.tolist() == [*expected]
    np.testing.assert_allclose(found.scores, [*expected.values()], rtol=1e-6)


def test_constants_by_hand():
    index = bm25.BM25(bm25.count(DOCUMENTS), k1=0.5, b=0.0)
    assert index.scores([["b"]])[0] == pytest.approx(
        [weight(2, 1, 3, 0.5, 0), weight(2, 1, 2, 0.5, 0), 0]
    )


def test_postings_are_sorted_and_complete():
    found = bm25.count(DOCUMENTS)
    assert found.terms == ("a", "b", "c", "d")
    assert found.starts.tolist() == [0, 1, 3, 4, 5]
    assert found.documents.tolist() == [0, 0, 1, 1, 2]
    assert found.counts.tolist() == [2, 1, 1, 1, 1]
    assert found.lengths.tolist() == [3, 2, 1]


def test_a_corpus_without_a_term():
    index = bm25.BM25(bm25.count([[], []]))
    (found,) = index.search([["a"]], ranks.places_of(["0", "1"]), 3)
    assert not len(found.rows)


def test_queries_in_blocks_give_what_one_gives(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [rng.choice([*"abcdefgh"], 6).tolist() for _ in range(20)]
    index, places = bm25.BM25(bm25.count(texts)), np.arange(20)
    whole = index.search(texts, places, 5)
    monkeypatch.setattr(bm25, "BLOCK", 60)
    for one, other in zip(whole, index.search(texts, places, 5), strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    "text, options, expected",
    [
        ("The Flows, of AIRfoils!", {}, ["flow", "airfoil"]),
        ("The Flows", {"stem": False}, ["flows"]),
        ("The Flows", {"stop_words": False}, ["the", "flow"]),
        ("mach 2.5 snake_case", {}, ["mach", "2", "5", "snake", "case"]),
        ("Straße ﬁle", {"stem": False}, ["strasse", "file"]),
        ("検索 of ไทย。", {}, ["検", "索", "ไ", "ท", "ย"]),
        (" .,- ", {}, []),
    ],
)
def test_terms(text, options, expected):
    assert Terms(**options).reader()(text) == expected
