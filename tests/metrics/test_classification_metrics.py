"""Metrics of labels and numbers: against scikit-learn, scipy and a reference file."""

import csv
import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from lm.metrics import classification, counts, regression, statistics

AVERAGED = ("precision", "recall", "f1")


@pytest.fixture(scope="module")
def reference(test_data):
    place = test_data("ref_classification_metrics")
    rows = [*csv.DictReader((place / "cases.tsv").open(), delimiter="\t")]

    def column(*names):
        return np.array([[float(row[name]) for name in names] for row in rows])

    labels = column("label")[:, 0].astype(int)
    first, other = (column(*(f"{s}{n}" for n in range(4))) for s in ("p", "other"))
    numbers = column("score")[:, 0], column("predicted_score")[:, 0]
    return (
        labels,
        first,
        other,
        numbers,
        json.loads((place / "expected.json").read_text()),
    )


def test_the_reference_file(reference):
    labels, p, other, (scores, guesses), expected = reference
    names = {"mcc": "matthews", "cohen_kappa": "kappa", "auc_ovr_macro": "auc"}
    for name, value in expected["multiclass"].items():
        if name == "confusion":
            assert counts.confusion(labels, p).tolist() == value
        else:
            metric = getattr(classification, names.get(name, name))
            assert metric(labels, p) == pytest.approx(value, rel=1e-9), name
    one = expected["class_1_against_the_rest"]
    against = (labels == 1).astype(int), np.stack([1 - p[:, 1], p[:, 1]], 1)
    for name, value in zip(
        ("average_precision", "auc", "matthews", "f1"), one.values()
    ):
        metric = getattr(classification, name)
        assert metric(*against) == pytest.approx(value, rel=1e-9), name
    sure = expected["calibration_of_the_highest_probability"]
    assert classification.ece(labels, p) == pytest.approx(sure["ece_15_equal_width"])
    assert classification.ece(labels, p, 10) == pytest.approx(
        sure["ece_10_equal_width"]
    )
    assert classification.ece_mass(labels, p) == pytest.approx(
        sure["ece_15_equal_mass"]
    )
    assert classification.brier(labels, p) == pytest.approx(
        sure["brier_sum_over_classes"]
    )
    for name, value in expected["regression"].items():
        metric = getattr(regression, name.removesuffix("_tau_b"))
        assert metric(scores, guesses) == pytest.approx(value, rel=1e-9), name
    both = expected["first_against_other"]
    right, right_other = p.argmax(1) == labels, other.argmax(1) == labels
    only = (right & ~right_other).sum(), (right_other & ~right).sum()
    assert only == (both["only_first_right"], both["only_other_right"])
    p_value = statistics.mcnemar(*map(int, only))
    assert p_value == pytest.approx(both["mcnemar_exact_p"], rel=1e-9)
    interval = statistics.wilson(int(right.sum()), len(right))
    assert interval == pytest.approx(both["wilson_95_of_accuracy_first"], rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_single_labels_as_scikit_learn_has_them(classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=60)
    p = rng.dirichlet(np.ones(classes), size=60).round(2) + 1e-3  # with ties
    if seed == 2:
        p[:, 1] /= 9  # a class that is hardly ever predicted
    p /= p.sum(1, keepdims=True)
    guess, every = p.argmax(1), range(classes)
    wanted = {
        "accuracy": sk.accuracy_score(labels, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, guess),
        "matthews": sk.matthews_corrcoef(labels, guess),
        "kappa": sk.cohen_kappa_score(labels, guess),
        "log_loss": sk.log_loss(labels, p),
    }
    for average in ("macro", "micro", "weighted"):
        for name in AVERAGED:
            wanted[f"{average}_{name}"] = getattr(sk, f"{name}_score")(
                labels, guess, labels=every, average=average, zero_division=0
            )
    average = "binary" if classes == 2 else "macro"
    for name in AVERAGED:
        wanted[name] = getattr(sk, f"{name}_score")(
            labels, guess, average=average, zero_division=0
        )
    truth = labels[:, None] == np.arange(classes)
    scores, truth = (p[:, 1], truth[:, 1]) if classes == 2 else (p, truth)
    wanted["auc"] = sk.roc_auc_score(truth, scores)
    wanted["average_precision"] = sk.average_precision_score(truth, scores)
    if classes == 2:
        wanted["brier"] = 2 * sk.brier_score_loss(labels, p[:, 1])
    for name, value in wanted.items():
        found = getattr(classification, name)(labels, p)
        assert found == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_several_labels_as_scikit_learn_has_them():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 3)) < 0.4).astype(np.float32)
    p = rng.random((50, 3)).round(1) + 0.01
    guess = p > 0.5
    wanted = {"accuracy": sk.accuracy_score(labels, guess)}
    for average in ("macro", "micro", "weighted"):
        for name in AVERAGED:
            score = getattr(sk, f"{name}_score")
            wanted[f"{average}_{name}"] = score(
                labels, guess, average=average, zero_division=0
            )
    wanted["auc"] = sk.roc_auc_score(labels, p)
    wanted["average_precision"] = sk.average_precision_score(labels, p)
    for name, value in wanted.items():
        found = getattr(classification, name)(labels, p)
        assert found == pytest.approx(value, rel=1e-6), name
    assert math.isnan(classification.matthews(labels, p))


@pytest.mark.parametrize("seed", range(3))
def test_numbers_as_scipy_has_them(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 40).astype(float)
    scores = (labels + rng.normal(size=40)).round()
    for name, value in {
        "pearson": stats.pearsonr(labels, scores).statistic,
        "spearman": stats.spearmanr(labels, scores).statistic,
        "kendall": stats.kendalltau(labels, scores).statistic,
        "mse": sk.mean_squared_error(labels, scores),
        "mae": sk.mean_absolute_error(labels, scores),
        "r2": sk.r2_score(labels, scores),
    }.items():
        assert getattr(regression, name)(labels, scores) == pytest.approx(value), name
    same = np.ones(40)
    assert math.isnan(regression.pearson(labels, same))
    with warnings.catch_warnings(action="ignore"):
        assert math.isnan(regression.kendall(labels, same))
