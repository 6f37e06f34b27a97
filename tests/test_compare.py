"""lm.compare: differences of runs by their predictions, and what it refuses."""

import json

import numpy as np
import pytest

from lm import compare

NAMES = ("no", "yes")


def write(folder, rows, step=4):
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions" / f"dev-{step}.jsonl").write_text(text)
    return folder


def classified(right):
    """Rows of which these are right, labels by turns."""
    rows = []
    for n, holds in enumerate(right):
        label, other = (NAMES[n % 2], NAMES[1 - n % 2])
        p = {label: 0.75, other: 0.25} if holds else {label: 0.25, other: 0.75}
        p = {name: p[name] for name in NAMES}
        rows.append({"hash": f"{n:016x}", "label": label, "probabilities": p})
    return rows


@pytest.fixture
def ask(capsys):
    def run(*argv):
        code = compare.main([str(a) for a in argv])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_differences_are_shown_where_there_are_some(ask, tmp_path):
    n = np.arange(400)
    first = write(tmp_path / "first", classified(n % 10 > 2))  # 0.7
    better = write(tmp_path / "better", classified(n % 10 > 1))  # 0.8
    same = write(tmp_path / "same", classified((n + 5) % 10 > 2))  # 0.7
    code, out, error = ask(first, better, same, "--resamples=300", "--json")
    assert code == 0, error
    found = json.loads(out)
    assert found["metric"] == "accuracy" and found["records"] == 400
    assert [each["value"] for each in found["runs"]] == [0.7, 0.8, 0.7]
    up, none = found["differences"]
    assert up["difference"] == pytest.approx(0.1) and up["verdict"] == "higher"
    assert up["p"] == pytest.approx(1 / 301) and up["p_holm"] == 2 * up["p"]
    assert up["p_mcnemar"] == pytest.approx(2 * 0.5**40)
    assert up["effect_size"] == pytest.approx(
        0.1 / np.std([1] * 40 + [0] * 360, ddof=1)
    )
    assert none["difference"] == 0 and none["verdict"] == "no difference shown"
    assert none["p"] == 1.0
    low, high = none["interval"]
    assert low < 0 < high
    code, out, _ = ask(first, better, same, "--resamples=100", "--metric=matthews")
    lines = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert code == 0 and all(len(line) <= 80 for line in lines)
    assert "no difference shown" in out and ": higher" in out and "by Holm" in out


def test_numbers_have_no_mcnemar(ask, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random(60)
    runs = []
    for name, noise in (("first", 1.0), ("second", 0.05)):
        scores = labels + noise * rng.normal(size=60)
        rows = [
            {"hash": str(n), "label": label, "score": score}
            for n, (label, score) in enumerate(zip(labels, scores))
        ]
        runs.append(write(tmp_path / name, rows))
    found = json.loads(ask(*runs, "--json", "--resamples=200")[1])
    (only,) = found["differences"]
    assert found["metric"] == "pearson" and only["p_mcnemar"] is None
    assert only["verdict"] == "higher" and only["effect_size"] > 0.5


def test_refusals(ask, tmp_path):
    first = write(tmp_path / "first", classified([1] * 8))
    others = {
        "7 records instead of 8": classified([1] * 7),
        "another text or label in record 3": classified([1] * 8),
        "rows that do not fit together": classified([1] * 8),
    }
    others["another text or label in record 3"][2]["hash"] = "0"
    del others["rows that do not fit together"][5]["probabilities"]["no"]
    for n, (found, rows) in enumerate(others.items()):
        code, out, error = ask(first, write(tmp_path / str(n), rows))
        assert code == 3 and f"found {found}" in error and not out, error
        assert len(error.splitlines()) == 1
    for argv, code, found in (
        ((first,), 2, "one run"),
        ((first, tmp_path), 2, "no config.json"),
        ((first, first, "--eval=test"), 3, "no predictions of evaluation 'test'"),
        ((first, first, "--step=3"), 3, "steps 4 of evaluation 'dev'"),
        ((first, first, "--metric=accurac"), 2, "did you mean accuracy"),
        ((first, first, "--metric=pearson"), 2, "pearson"),
        ((first, first, "--level=1"), 2, "--level"),
        ((first, first, "--resamples=0"), 2, "--resamples"),
    ):
        got, out, error = ask(*argv)
        assert got == code and found in error and not out, error
