"""lm.doctor on data with planted faults: each is found, named and ends with 3."""

import json

import numpy as np
import pytest

from lm import doctor
from lm.host import process
from tests import tiny

GOOD = [
    *("a warm and clever film about old friends", "one of the best this year"),
    *("beautifully shot and very well acted", "i laughed from start to end"),
]
BAD = [
    *("the plot is a mess from start to end", "two hours i will not get back"),
    *("dull loud and far too long for me", "the jokes fall flat one by one"),
]


def records(rng, count):
    """(text, label) in turn of the two labels, no two texts alike."""
    extra = [f"{a}{b}" for a in "bdfgklmn" for b in ("at", "en", "ip", "od", "ug")]
    for n in range(count):
        words = [*rng.choice(extra, 6), *(GOOD, BAD)[n % 2][n // 2 % 4].split()]
        yield " ".join(rng.permutation(words)), n % 2


def write(path, rows):
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return path


@pytest.fixture
def examine(tmp_path, capsys):
    """Runs the doctor on rows; returns its code, report by (set, check), and error."""
    rng = np.random.default_rng(0)
    clean = [*records(rng, 120)], [*records(rng, 40)]

    def run(change=lambda train, dev: None, accepted=()):
        train, dev = ([*rows] for rows in clean)
        change(train, dev)
        columns = {"name": "tsv", "columns": ("text", "label"), "header": False}

        def data(name, rows):
            file = write(tmp_path / f"{name}.tsv", rows)
            return {"sources": [{**columns, "files": str(file)}]}

        dev_data = data("dev", dev)
        config = tiny.config(
            objective={"name": "classification", "classes": 3},
            data=data("train", train),
            evals={
                "dev": {"evaluator": "predictions", "data": dev_data},
                "dev_loss": {"evaluator": "mean", "data": dev_data},
            },
        )
        workdir = tmp_path / "run"
        workdir.mkdir(exist_ok=True)
        code = process.run_main(lambda: doctor.examine(config, workdir, accepted))
        shown = capsys.readouterr()
        report = json.loads((workdir / "doctor.json").read_text())
        assert all(len(line) <= 80 for line in shown.out.splitlines()[:-1])
        return code, {(f["of"], f["check"]): f for f in report}, shown.err

    return run


def test_clean_data_are_well(examine, tmp_path):
    code, report, err = examine()
    assert code == 0 and "dev_loss: the same set as dev" in err
    assert {each["verdict"] for each in report.values()} <= {"ok", "note"}
    assert report["dev", "overlap"]["figures"]["texts"] == 40
    assert report["training", "labels"]["figures"] == {"0": 60, "1": 60}
    lengths = report["training", "lengths"]["figures"]
    assert sum(lengths["rows"]) == 120


def test_an_evaluation_that_is_trained_on(examine, tmp_path):
    def change(train, dev):
        train[3] = (dev[5][0].upper() + " !", dev[5][1])
        train[4] = (dev[6][0] + " indeed", dev[6][1])

    code, report, err = examine(change)
    found = report["dev", "overlap"]
    assert code == 3 and "error[data] data: found wrong: overlap of dev" in err
    assert (found["figures"]["exact"], found["figures"]["near"]) == (1, 1)
    assert "dev.tsv:6" in found["examples"][0] and "train.tsv:4" in found["examples"][0]
    code, report, _ = examine(change, ["overlap"])
    assert code == 0 and report["dev", "overlap"]["verdict"] == "note"


def test_labels_that_contradict_each_other(examine):
    def change(train, dev):
        train[10:18] = [(train[n][0], 1 - train[n][1]) for n in range(8)]

    code, report, err = examine(change)
    found = report["training", "conflicts"]
    assert code == 3 and "conflicts of training" in err
    assert found["figures"] == {"texts": 120, "conflicting": 16}
    assert "train.tsv:1 and" in found["examples"][0]
    assert report["training", "repeated"]["figures"]["repeated"] == 8


def test_a_word_that_gives_the_label_away(examine):
    def change(train, dev):
        for n in range(0, 60, 2):
            train[n] = (f"{train[n][0]} zzz", train[n][1])

    code, report, err = examine(change)
    found = report["training", "leakage"]
    assert code == 3 and "leakage of training" in err
    assert any("zzz" in token for token in found["figures"]["tokens"])


def test_a_label_that_is_never_trained_on(examine):
    code, report, err = examine(lambda train, dev: dev.append(("some new text", 2)))
    assert code == 3 and "labels of dev" in err
    assert "2: 1 records of a label" in report["dev", "labels"]["text"]


def test_lost_characters(examine):
    def change(train, dev):
        dev[:4] = [(text + " caf\ufffd", label) for text, label in dev[:4]]

    code, report, err = examine(change)
    found = report["dev", "characters"]
    assert code == 3 and "characters of dev" in err
    assert found["figures"] == {"kind": "lost", "records": 40, "damaged": 4}


def test_an_unknown_check_is_refused(examine, tmp_path, capsys):
    config = "--config=configs/sst2.py:quick"
    assert doctor.main([config, "--accept=overlaps"]) == 2
    assert "did you mean overlap?" in capsys.readouterr().err
