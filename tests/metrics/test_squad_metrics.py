"""Exact match and F1 of answers: official scores to the digit, thresholds, baseline."""

import json

import numpy as np
import pytest

from lm.data.sources.squad import Source
from lm.metrics import baselines, squad


@pytest.mark.parametrize("system", ["bert", "logistic_regression_baseline"])
def test_official_scores_to_the_digit(test_data, system):
    file = test_data("qa_squad11_dev_part") / "valid.json"
    folder = test_data("ref_squad_predictions")
    said = json.loads((folder / f"{system}.valid.json").read_text())
    expected = json.loads((folder / "expected_em_f1.json").read_text())
    records = [*Source(files=str(file)).records()]
    for metric, wanted in zip(
        (squad.exact_match, squad.f1), expected[system]["em_f1_on_valid"]
    ):
        each = [
            squad.best_of(metric, said[r.fields["id"]], r.fields["answers"])
            for r in records
        ]
        assert round(100 * float(np.mean(each)), 4) == wanted


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The  Nile!", "nile", 1, 1),
        ("a river, the Nile", "Nile river", 0, 1),
        ("river river Nile", "river Nile Nile", 0, 2 / 3),
        ("theory", "the ory", 0, 0),
        ("the", "", 1, 1),
        ("", "Nile", 0, 0),
        ("Nile", "", 0, 0),
        ("x-y", "xy", 1, 1),
        ("the blue Nile", "the Nile", 0, 2 / 3),
    ],
)
def test_normalised_words(answer, reference, exact, f1):
    assert squad.exact_match(answer, reference) == exact
    assert squad.f1(answer, reference) == pytest.approx(f1)


def test_the_nearest_reference_counts():
    assert squad.best_of(squad.f1, "blue Nile", ["Nile", "blue Nile"]) == 1
    # A reference that is only an article is none, unless there is no other.
    assert squad.best_of(squad.exact_match, "", ["the", "Nile"]) == 0
    assert squad.best_of(squad.exact_match, "", ["the"]) == 1
    assert squad.best_of(squad.exact_match, "", [""]) == 1


def test_the_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 8))
        scores, null = rng.integers(0, 3, (2, n)) / 2.0
        odds = rng.integers(-2, 3, n).astype(float)  # with ties
        found = squad.best_threshold(scores, null, odds)

        def at(limit, scores=scores, null=null, odds=odds):
            return float(np.where(odds > limit, null, scores).mean())

        tried = [at(limit) for limit in np.arange(-4, 4, 0.5)]
        assert found.score == pytest.approx(max(tried))
        assert at(found.threshold) == pytest.approx(found.score)
    every = np.full(3, np.inf)
    assert squad.best_threshold(np.zeros(3), np.zeros(3), every).threshold == -1


def test_the_plain_method():
    context = (
        "Cairo is large. The river Nile was first mapped by Ada Lovelace in 1821. It "
        "is long."
    )
    answer = baselines.nearest_name
    assert answer("Who first mapped the river Nile?", context) == "Ada Lovelace"
    assert answer("Who was Ada Lovelace?", context) == "Nile"
    assert answer("Is it very large or long?", "it is not so") == "not so"
    assert answer("x", "") == "" and answer("", "...") == ""
