"""Results of a sweep: their figures by hand, what is chosen, and what is not hidden."""

import json
import math

import pytest

from lm import results
from lm.errors import DataError
from lm.results import Choice, Result

ACCURACY = Choice(("dev/accuracy",), "best", "dev/accuracy", "max", "dev")


def one(value, status="done", lr=1e-4, **setting):
    setting = {"optim.lr": lr} | setting
    name = ",".join(f"{k}={v}" for k, v in setting.items())
    measured = {} if value is None else {"dev/accuracy": value, "step": 4.0}
    code = {"done": 0, "failed": 6}.get(status)
    error = "error[numerical] step 3: found loss = nan" if code else None
    fields = {"last": measured, "best": measured, "code": code, "error": error}
    return Result("c.py", name, name, setting, status, **fields)


SWEPT = [
    *(one(value, seed=n) for n, value in enumerate((0.80, 0.82, 0.81))),
    one(None, "failed", seed=3),
    *(one(value, lr=3e-4, seed=n) for n, value in enumerate((0.90, 0.70, 0.86, 0.86))),
    one(None, "waiting", lr=1e-3, seed=0),
]


def test_the_table_has_the_figures_of_a_calculation_by_hand(tmp_path):
    text = results.to_text(tmp_path, SWEPT, ACCURACY)
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines), text
    # 0.81 +- t(0.975, 2) 0.01 / sqrt(3) = 4.302653 * 0.0057735; and with t = 3.182446
    # a deviation of 0.088694 over 2 gives 0.1411.
    rows = [" ".join(line.split()) for line in lines]
    assert "optim.lr=1e-4 0.8100 0.0100 [0.7852, 0.8348] 0.8100 3 1" in rows
    assert "optim.lr=3e-4 * 0.8300 0.0887 [0.6889, 0.9711] 0.8600 4 0" in rows
    assert "optim.lr=1e-3 - - - - 0 0" in rows
    said = " ".join(text.split())
    assert "selected: optim.lr=3e-4, the highest mean of dev/accuracy" in said
    # Seeds 0 to 2 are common: differences 0.10, -0.12, 0.05.
    assert "less optim.lr=1e-4: +0.0100 [-0.2765, +0.2965], no difference" in said
    assert "shown, over 3 pairs" in said
    assert "failed: optim.lr=0.0001,seed=3: exit code 6: error[numerical]" in said
    assert "1 of 9 runs are not done" in said
    found = json.loads(results.to_json(tmp_path, SWEPT, ACCURACY))
    first = found["settings"][0]
    assert (first["runs"], first["done"], first["failed"]) == (4, 3, 1)
    assert first["metrics"]["dev/accuracy"]["values"] == [0.80, 0.82, 0.81]
    assert first["metrics"]["dev/accuracy"]["interval"] == pytest.approx(
        [0.785159, 0.834841], abs=1e-6
    )
    assert found["settings"][2]["metrics"]["dev/accuracy"]["mean"] is None
    assert found["selected"]["name"] == "optim.lr=3e-4"
    assert found["selected"]["difference"]["mean"] == pytest.approx(0.01)
    # By a loss the other one is chosen, and by nothing none.
    lowest = results.to_text(tmp_path, SWEPT, ACCURACY._replace(mode="min"))
    assert "optim.lr=1e-4 *" in lowest and "the lowest mean" in lowest
    none = results.to_text(tmp_path, SWEPT, ACCURACY._replace(select=None))
    assert "*" not in none


def test_what_misleads_is_said(tmp_path):
    test = ACCURACY._replace(metrics=("test/accuracy",), best="test/accuracy")
    swept = [one(0.5, seed=0), one(math.nan, seed=1)]
    said = " ".join(results.to_text(tmp_path, swept, test).split())
    assert "warning: checkpoint.best follows test/accuracy, of a test set" in said
    assert "without a finite test/accuracy: optim.lr=0.0001,seed=0;" in said
    said = results.to_text(tmp_path, swept, test._replace(at="last"))
    assert "warning" not in said
    said = " ".join(results.to_text(tmp_path, swept, ACCURACY).split())
    assert "without a finite dev/accuracy: optim.lr=0.0001,seed=1" in said
    assert "dev/accuracy 0.5000 - - 0.5000 1 0" in said  # a setting: rows of metrics
    folds = [one(0.5, **{"data.fold": f"{n}/2"}) for n in (1, 2)]
    said = " ".join(results.to_text(tmp_path, folds, ACCURACY).split())
    assert "interval is too narrow" in said
    for name in ("test", "test_loss", "news-test", "TEST2016"):
        assert results.is_test(f"{name}/loss")
    for name in ("dev", "latest", "testimony", "contest"):
        assert not results.is_test(f"{name}/test")


def test_long_names_and_large_numbers_keep_the_width(tmp_path):
    name = "model.name=transformer,optim.schedule=constant,objective.label_smoothing"
    swept = [one(12345.678 * n, lr=name * n, seed=n) for n in (1, 2)]
    text = results.to_text(tmp_path, swept, ACCURACY)
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert "12345.7" in text


def test_rows_of_metrics_give_the_last_and_the_best(tmp_path):
    rows = [
        {"step": 1, "train/loss": 5.0},
        {"step": 2, "dev/loss": 3.0, "dev/accuracy": 0.5, "optim/lr": 1.0},
        {"step": 4, "dev/loss": 2.0, "dev/accuracy": 0.7},
        {"step": 6, "dev/loss": "NaN", "dev/accuracy": 0.7, "test/accuracy": 0.6},
        {"step": 7, "train/loss": 1.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "dev/lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    found = results.measure(tmp_path, "dev/accuracy", "max")
    assert found["best"] == {"dev/loss": 2.0, "dev/accuracy": 0.7, "step": 4}
    last = found["last"]
    assert math.isnan(last.pop("dev/loss"))
    assert last == {"dev/accuracy": 0.7, "test/accuracy": 0.6, "step": 7}
    assert results.measure(tmp_path, "dev/loss", "min")["best"]["step"] == 4
    assert results.measure(tmp_path, None, "min")["best"] == {}
    empty = {"last": {}, "best": {}}
    assert results.measure(tmp_path / "none", "dev/loss", "min") == empty


def test_results_are_kept_as_they_were(tmp_path):
    file = tmp_path / "sweep.jsonl"
    assert results.read(file) == {}
    odd = Result("c.py", "a", "a", {"t": [1, None]}, last={"dev/x": math.inf})
    results.write(file, [*SWEPT, odd])
    assert [*results.read(file).values()] == [*SWEPT, odd]
    undefined = Result("c.py", "b", "b", {}, best={"dev/x": math.nan})
    results.write(file, [undefined])
    assert math.isnan(results.read(file)["b"].best["dev/x"])
    for text, found in (
        ("{}\n", "no 'config'"),
        ("torn", "no JSON"),
        (file.read_text().replace('"NaN"', '"x"'), "no number"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=found) as error:
            results.read(file)
        assert "sweep.jsonl:1" in str(error.value)


def predictions(folder, rows, step=4):
    place = folder / "predictions"
    place.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    lines = [
        {"hash": f"{n}", "label": label, "probabilities": {"no": 1 - p, "yes": p}}
        for n, (label, p) in enumerate(rows)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / f"dev-{step}.jsonl").write_text(text)


def test_folds_are_pooled_where_all_are_there(tmp_path):
    """F1 of all records together is not the mean of the folds' F1."""
    held = [[("yes", 0.9), ("no", 0.8), ("no", 0.1)], [("yes", 0.4)]]
    for n, rows in enumerate(held, 1):
        folder = tmp_path / f"optim.lr=0.0001,data.fold={n}/2,seed=0"
        predictions(folder, rows)
    folds = [one(0.5, **{"data.fold": f"{n}/2", "seed": 0}) for n in (1, 2)]
    choice = ACCURACY._replace(metrics=("dev/f1",), select=None)
    [group] = results.gather(folds)
    found = results.pool(tmp_path, group, "dev/f1", "best")
    assert found == (pytest.approx(0.5), 2, 4, 1)  # of two "yes", one; and one too many
    text = results.to_text(tmp_path, folds, choice)
    assert "pooled: 0.5000 of 4 records in 2 folds" in text
    made = json.loads(results.to_json(tmp_path, folds, choice))
    assert made["settings"][0]["metrics"]["dev/f1"]["pooled"] == pytest.approx(0.5)
    for metric, at, group_ in (
        ("dev/f1", "best", group._replace(runs=folds[:1])),
        ("dev/nothing", "best", group),
        ("test/f1", "best", group),
        ("dev/f1", "best", group._replace(runs=[one(0.5, seed=0)])),
    ):
        assert results.pool(tmp_path, group_, metric, at) is None
