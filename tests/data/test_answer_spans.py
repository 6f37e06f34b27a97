"""Answers put together of rows: the best over windows, null, texts, probabilities."""

import math

import numpy as np
import pytest

from lm.data import answers
from lm.data.answers import Candidate

CONTEXT = "a bb  ccc"


def row(read=(1, 1, 1)):
    """A window of three tokens, the second with a space in front."""
    return {
        "begins": np.asarray([0, 1, 6]),
        "ends": np.asarray([1, 4, 9]),
        "read": np.asarray(read),
    }


def said(*spans):
    starts, ends, scores = map(np.asarray, zip(*spans))
    return {"starts": starts, "ends": ends, "scores": scores}


def test_the_text_is_the_contexts_own():
    """Places 5 to 7; spans outside of the window or not read here are none."""
    spans = [(5, 7, 3.0), (6, 6, 2.0), (7, 8, 1.0), (0, 0, 0.5), (7, 7, 0.0)]
    found = [*answers.candidates_of(CONTEXT, row(), said(*spans), 5)]
    assert [c[:4] for c in found] == [
        ("a bb  ccc", 0, 9, 3.0),
        ("bb", 2, 4, 2.0),
        ("ccc", 6, 9, 0.0),
    ]
    found = answers.candidates_of(CONTEXT, row((0, 1, 1)), said(*spans), 5)
    assert [c.text for c in found] == ["bb", "ccc"]


A, B, A_AGAIN = (
    Candidate("a", 0, 1, 2.0),
    Candidate("b", 2, 3, 3.0),
    Candidate("a", 8, 9, 1.0),
)


@pytest.mark.parametrize(
    ("threshold", "text"), [(None, "b"), (0.0, "b"), (-0.5, "b"), (-1.5, "")]
)
def test_the_best_of_all_windows_against_the_least_null(threshold, text):
    """The null score is 2, the least; the odds are -1."""
    found = answers.conclude([A, A_AGAIN, B], [9.0, 2.0, 5.0], 20, threshold)
    assert found.answer.text == text
    assert found.null_score == 2.0 and found.null_odds == -1.0
    texts = ["b", "a"] if threshold is None else ["b", "a", ""]
    assert [c.text for c in found.candidates] == texts
    weights = [math.exp(c.score) for c in found.candidates]
    for each, weight in zip(found.candidates, weights):
        assert each.probability == pytest.approx(weight / sum(weights))
    assert found.candidates[1].start == 0  # not that of the lower score
    assert found.best.text == "b"


def test_the_threshold_is_passed_by_more_than_it():
    assert answers.conclude([B], [4.0], 20, 1.0).answer.text == "b"
    assert answers.conclude([B], [4.01], 20, 1.0).answer.text == ""
    assert answers.conclude([B, A], [4.01], 1, 1.0).best.text == "b"
    assert len(answers.conclude([B, A], [4.01], 1, 1.0).candidates) == 2


@pytest.mark.parametrize("threshold", [None, 0.0, 1e9])
def test_no_candidate_at_all(threshold):
    found = answers.conclude([], [-3.0, 1.0], 20, threshold)
    assert found.answer == Candidate("", None, None, -3.0, 1.0)
    assert [c.text for c in found.candidates] == [""]
    assert found.null_odds == math.inf and found.best.text == ""


def test_scores_that_are_no_numbers_make_odds_that_are_none():
    found = answers.conclude([Candidate("a", 0, 1, math.nan)], [math.nan], 20, 0.0)
    assert math.isnan(found.null_odds)
