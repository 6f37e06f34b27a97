"""Near duplicates: signatures against exact similarities, planted pairs, memory."""

import random

import numpy as np
import pytest

from lm.checks import duplicates
from lm.checks.duplicates import Text

WORDS = [f"w{n}" for n in range(3000)]


def jaccard(first, second):
    one, two = ({t[n : n + 3] for n in range(len(t) - 2)} for t in (first, second))
    return len(one & two) / len(one | two)


@pytest.fixture(scope="module")
def pairs():
    """Texts, others with up to 12 of their 100 words changed, their similarities."""
    rng = random.Random(0)
    own, others = [], []
    for _ in range(300):
        text = rng.choices(WORDS, k=100)
        own.append(tuple(text))
        for _ in range(rng.randint(0, 12)):
            text[rng.randrange(100)] = rng.choice(WORDS)
        others.append(tuple(text))
    return own, others, np.array([jaccard(a, b) for a, b in zip(own, others)])


def named(texts, name):
    return [Text(f"{name}{n}", text) for n, text in enumerate(texts)]


def test_signatures_estimate_the_similarity(pairs):
    own, others, true = pairs
    first, second = (duplicates.signatures(named(t, "")) for t in (own, others))
    error = (first == second).mean(1) - true
    assert np.abs(error.mean()) < 0.01 and error.std() < 0.045
    assert (first[:-1] == second[1:]).mean() < 0.01  # of texts with nothing in common


@pytest.mark.parametrize("held", [65_536, 70])
def test_planted_near_duplicates_are_found(pairs, held, monkeypatch):
    monkeypatch.setattr(duplicates, "HELD", held)
    own, others, true = pairs
    passes = []

    def again():
        passes.append(1)
        return iter(named(others, "other"))

    found = list(duplicates.find(named(own, ""), again))
    assert len(passes) == -(-len(own) // held)
    assert all(match.other == f"other{match.where}" for match in found)
    numbers = {int(match.where) for match in found}
    assert numbers >= set(np.flatnonzero(true > 0.9))
    assert not numbers & set(np.flatnonzero(true < 0.65))
    assert {int(m.where) for m in found if m.exact} == set(np.flatnonzero(true == 1))


def test_words_are_compared_without_case_punctuation_and_forms():
    same = [["It's a ﬁlm, really!"], ["IT S A FILM", "really"]]
    assert duplicates.words_of(same[0]) == duplicates.words_of(same[1])
    assert duplicates.words_of(["电影 a1_b2 2.5"]) == (
        *("电", "影", "a1", "b2", "2", "5"),
    )


def test_short_texts_and_the_order_of_their_words():
    own = named([("good",), ("good", "film"), ("no", "film", "at", "all"), ()], "")
    others = named([("film", "good"), ("good",), ("no", "film", "at", "all", "x")], "o")
    found = list(duplicates.find(own, lambda: iter(others)))
    assert [(m.where, m.other, m.exact) for m in found] == [("0", "o1", True)]


def test_ranges_of_keys_that_occur_several_times():
    table = np.array([2, 5, 5, 5, 9], np.uint64)
    asked = np.array([5, 1, 9, 10], np.uint64)
    numbers, places = duplicates.ranges(table, asked)
    assert list(zip(numbers, places)) == [(0, 1), (0, 2), (0, 3), (2, 4)]
