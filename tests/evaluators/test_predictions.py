"""The evaluator of predictions: padding, windows, intervals, files and baselines."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from lm import run as runs
from lm.errors import ConfigError
from lm.evaluators import base, predictions
from lm.metrics import baselines, classification
from lm.objectives.classification import Objective
from tests import tiny


def evaluate(
    folder, labels, logits, *, weights=None, records=None, notes=None, task=None, **own
):
    """Runs the evaluator on one batch; returns its metrics."""
    order = own.pop("order", None)
    objective = task or Objective(classes=logits.shape[1])
    index = types.SimpleNamespace(
        fields={"record": np.asarray(records or range(len(labels)))}
    )
    batch = {"labels": labels, "label_weights": np.ones(len(labels), np.float32)}
    if weights is not None:
        batch["label_weights"] = np.asarray(weights, np.float32)
    given = {field.name: None for field in dataclasses.fields(base.Examples)}
    given |= {
        "objective": objective,
        "batches": lambda by_length: iter([batch]),
        "stream": types.SimpleNamespace(
            indices=(index,), from_longest=lambda rows: order
        ),
    }
    wanted = {field.name: None for field in dataclasses.fields(base.Functions)}
    found = jax.tree.map(np.asarray, objective.conclude(jnp.asarray(logits)))
    wanted["predict"] = lambda batch: (batch, found)
    notes = [] if notes is None else notes
    out = base.Outputs(folder / "samples" / "dev-3.txt", notes.append)
    evaluator = predictions.Evaluator(plain_methods=False, **own)
    return dict(evaluator.run(base.Examples(**given), base.Functions(**wanted), out))


def logits_of(scores):
    """Two logits whose softmax gives class 1 these probabilities."""
    scores = np.asarray(scores)
    return np.log(np.stack([1 - scores, scores], 1)).astype(np.float32)


def test_padding_is_left_out_and_metrics_have_intervals(tmp_path):
    labels = np.array([1, 0, 1, 0, 0, 1])
    scores = np.array([0.9, 0.2, 0.4, 0.6, 0.1, 0.8])
    padded = {"weights": [1, 1, 1, 1, 1, 0]}  # the last row is padding
    found = evaluate(tmp_path, labels, logits_of(scores), **padded, resamples=200)
    real, guess = labels[:5], scores[:5] > 0.5
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(real, guess))
    assert found["auc"] == pytest.approx(5 / 6)
    assert 0 <= found["accuracy_low"] < 3 / 5 < found["accuracy_high"] <= 1
    table = (tmp_path / "samples" / "dev-3.txt").read_text().splitlines()
    assert [line.split() for line in table] == [
        ["label", "0", "1"],
        ["0", "2", "1"],
        ["1", "1", "1"],
    ]
    task = Objective(labels=("no", "yes"))
    options = {"resamples": 0, "each_class": True, "task": task}
    found = evaluate(tmp_path, labels, logits_of(scores), **padded, **options)
    assert found["no/precision"] == pytest.approx(2 / 3)
    assert found["yes/f1"] == found["f1"]
    evaluator = predictions.Evaluator(resamples=0, each_class=True)
    assert {*found} == {*evaluator.yields(task)}


def test_metrics_of_several_classes_are_macro_averages():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7]]
    )
    assert classification.accuracy(labels, probabilities) == 3 / 4
    assert classification.precision(labels, probabilities) == pytest.approx(2.5 / 3)
    assert classification.recall(labels, probabilities) == pytest.approx(2.5 / 3)
    probabilities[3] = [0.2, 0.75, 0.05]
    by_class = [1, 2 / 3, 1 / 2]
    assert classification.auc(labels, probabilities) == pytest.approx(np.mean(by_class))
    assert math.isnan(classification.auc(np.array([0, 0, 1, 1]), probabilities))


def test_windows_of_a_record_are_one_prediction_by_their_mean_logits(tmp_path):
    logits = np.array([[0, 1], [3, 0], [0, 1], [2, 0], [1, 0]], np.float32)
    options = {"records": [0, 0, 3, 5, 5], "metrics": ("accuracy",), "resamples": 0}
    found = evaluate(tmp_path, np.array([0, 0, 1, 1, 1]), logits, **options)
    assert found["accuracy"] == pytest.approx(2 / 3)  # of rows it is 2 / 5
    order = np.array([3, 0, 4, 2, 1])  # the batch has its rows by length
    labels = np.array([0, 0, 1, 1, 1])[order]
    found = evaluate(tmp_path, labels, logits[order], order=order, **options)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_an_auc_that_is_not_defined_is_told_and_costs_nothing(tmp_path):
    notes: list[str] = []
    logits = logits_of([0.1, 0.6, 0.2])
    found = evaluate(tmp_path, np.array([0, 0, 0]), logits, notes=notes)
    assert math.isnan(found["auc"]) and math.isnan(found["auc_low"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert notes == ["auc is not defined here: no example of class 1"]


def test_predictions_that_are_not_finite_end_in_no_traceback(tmp_path):
    notes: list[str] = []
    logits = np.full((2, 2), np.nan, np.float32)
    options = {"notes": notes, "resamples": 0}
    found = evaluate(tmp_path, np.array([0, 1]), logits, **options)
    assert set(found) == {"accuracy", "precision", "recall", "f1", "auc"}
    assert all(math.isnan(value) for value in found.values())
    assert "not finite" in notes[0]


def test_numbers_have_correlations(tmp_path):
    logits = np.array([[0.2], [0.4], [0.9]], np.float32)
    task = Objective(kind="regression", scale=5.0)
    options = {"task": task, "metrics": ("mae", "spearman"), "resamples": 50}
    found = evaluate(tmp_path, np.array([1.0, 3.0, 4.0]), logits, **options)
    assert found["mae"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["spearman"] == pytest.approx(1)


TEXTS = [
    *({"text": f"a fine and warm day {n}", "label": "good"} for n in range(12)),
    *({"text": f"a cold and grey day {n}", "label": "bad"} for n in range(6)),
]


@pytest.mark.slow
def test_a_run_writes_predictions_and_notes_what_plain_methods_reach(tmp_path):
    source = {"sources": [{"name": "memory", "items": tuple(TEXTS)}], "pack": False}
    changes = {
        "objective": {"name": "classification", "labels": ("bad", "good")},
        "data": source,
        "evals": {
            "dev": {
                "evaluator": "predictions",
                "data": source,
                "every": 2,
                "metrics": ("accuracy", "matthews"),
                "write": True,
                "resamples": 20,
            }
        },
        "steps": 4,
    }
    assert tiny.run(changes, tmp_path) == 0
    lines = (tmp_path / "predictions" / "dev-4.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == [item["label"] for item in TEXTS]
    assert all([*row["probabilities"]] == ["bad", "good"] for row in rows)
    assert len({row["hash"] for row in rows}) == len(rows)
    right = [
        max(r["probabilities"], key=r["probabilities"].get) == r["label"] for r in rows
    ]
    last = tiny.rows(tmp_path)[-1]
    assert last["dev/accuracy"] == pytest.approx(np.mean(right))
    assert last["dev/accuracy_low"] <= last["dev/accuracy"] <= last["dev/accuracy_high"]
    log = (tmp_path / "run.log").read_text()
    assert log.count("dev by the most frequent class: accuracy 0.6667") == 1
    assert "dev by bag of words: accuracy 1.0000  matthews 1.0000" in log


def test_what_does_not_fit_is_refused_before_any_data(tmp_path):
    source = {"sources": [{"name": "memory", "items": tuple(TEXTS)}], "pack": False}
    dev = {"evaluator": "predictions", "data": source, "metrics": ("spearman",)}
    task = {"name": "classification", "labels": ("bad", "good")}
    config = {"data": source, "evals": {"dev": dev}}
    with pytest.raises(ConfigError, match="needs numbers"):
        runs.check(tiny.config(objective=task, **config))
    runs.check(
        tiny.config(
            objective={"name": "classification", "kind": "regression"}, **config
        )
    )
    with pytest.raises(ConfigError, match="needs labels, numbers"):
        runs.check(tiny.config(objective={"name": "mlm"}, **config))


def test_the_overlap_of_two_texts():
    rows = [(np.array([1, 2, 3]), np.array([2, 3, 4])), (np.array([1]), np.array([5]))]
    assert baselines.overlap(rows).tolist() == [0.5, 0.0]
    numbers = baselines.overlap_numbers(rows, np.array([4.0, 1.0]), rows)
    np.testing.assert_allclose(numbers, [4, 1])
    sure = baselines.overlap_classes(rows * 20, np.array([1, 0] * 20), 3, rows)
    assert sure.argmax(1).tolist() == [1, 0] and sure[:, 2].tolist() == [0, 0]
