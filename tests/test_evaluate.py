"""lm.evaluate: the same numbers as in training, from any checkpoint."""

import functools
import json
import math

import pytest

from lm import evaluate
from lm.host import timing
from tests import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    evals = {
        "heldout": {
            "evaluator": "mean",
            "baseline": "unigram",
            "data": {"sources": [{"name": "memory", "items": tiny.documents(13)}]},
            "every": 4,
        }
    }
    assert tiny.run({"evals": evals}, workdir) == 0
    return workdir


def run(capsys, *argv):
    with tiny.some_devices(tiny.config()):
        code = evaluate.main(list(argv))
    shown = capsys.readouterr()
    return code, (json.loads(shown.out) if shown.out else None), shown.err


@pytest.mark.parametrize("which, step", [("latest", 8), ("4", 4)])
def test_the_numbers_are_those_of_training(workdir, capsys, which, step):
    code, found, _ = run(capsys, f"--workdir={workdir}", f"--checkpoint={which}")
    assert code == 0
    assert found["step"] == step
    row = tiny.rows(workdir)[step - 1]
    for name in ("loss", "mlm_accuracy", "perplexity", "unigram_loss"):
        assert found[f"heldout/{name}"] == row[f"heldout/{name}"]


def test_another_batch_size_gives_the_same_means(workdir, capsys):
    """Padding to whole batches counts for nothing."""
    _, first, _ = run(capsys, f"--workdir={workdir}")
    _, second, _ = run(
        capsys, f"--workdir={workdir}", "--config.evals.heldout.batch_size=3"
    )
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-5), name


def test_a_long_evaluation_says_how_far_it_is(workdir, capsys, monkeypatch):
    often = functools.partial(timing.with_progress, every=0)
    monkeypatch.setattr(timing, "with_progress", often)
    _, _, shown = run(capsys, f"--workdir={workdir}")
    lines = [t for t in shown.splitlines() if t.startswith("heldout: batch ")]
    count = int(lines[0].split()[4].strip(","))
    numbers = [line.partition(",")[0].split()[2] for line in lines]
    assert numbers == [str(n) for n in range(1, count)] and count > 2


def test_refusals(workdir, tmp_path, capsys):
    code, _, error = run(capsys, f"--workdir={workdir}", "--checkpoint=5")
    assert code == 4
    assert "steps [4, 8]" in error
    code, _, error = run(capsys, f"--workdir={tmp_path}/none")
    assert code == 2
    assert "no such folder" in error
    code, _, error = run(capsys, f"--workdir={workdir}", "--checkpoint=newest")
    assert code == 2
    assert "latest, best or a step" in error


def test_evaluations_of_another_kind_on_a_run_that_follows_a_metric(tmp_path, capsys):
    """checkpoint.best and stop.metric may name what is gone: nothing is kept here."""
    changes = {
        "checkpoint__best": "heldout/mlm_loss",
        "stop__metric": "heldout/perplexity",
        "steps": 2,
    }
    assert tiny.run(changes, tmp_path) == 0
    source = "{'sources': [{'name': 'memory', 'items': [{'text': 'the old dog'}]}]}"
    given = f"{{'new': {{'evaluator': 'mean', 'data': {source}}}}}"
    code, found, error = run(capsys, f"--workdir={tmp_path}", f"--config.evals={given}")
    assert code == 0, error
    assert found["new/mlm_loss"] > 0 and not any("heldout" in name for name in found)


OTHER = """
def get_config(arg=""):
    data = {"sources": [{"name": "memory", "items": [{"text": arg or "a dog"}]}]}
    return {"evals": {"other": {"evaluator": "mean", "data": data}}, "steps": 3}
"""


def test_the_evaluations_of_another_config_and_the_rest_of_the_run(
    workdir, tmp_path, capsys
):
    file = tmp_path / "other.py"
    file.write_text(OTHER)
    more = "--config.evals.other.resamples=0"
    code, found, error = run(
        capsys, f"--workdir={workdir}", f"--evals={file}:the old dog", more
    )
    assert code == 0, error
    assert found["step"] == 8 and found["other/mlm_loss"] > 0
    assert not any("heldout" in name or "_low" in name for name in found)
    for flags, what in (
        ([f"--evals={file}", f"--config={file}"], "--config beside it"),
        ([f"--evals={tmp_path}/none.py"], "no such file"),
        (["--evals=configs/zero_shot.py:dir=/none"], "/none: found no such folder"),
    ):
        code, _, error = run(capsys, f"--workdir={workdir}", *flags)
        assert code == 2 and what in error.splitlines()[-1]


def test_one_evaluation_by_name(workdir, capsys):
    source = "{'sources': [{'name': 'memory', 'items': [{'text': 'the old dog'}]}]}"
    second = [
        "--config.evals.second.evaluator=mean",
        f"--config.evals.second.data={source}",
    ]
    code, found, error = run(capsys, f"--workdir={workdir}", *second, "--only=second")
    assert code == 0, error
    assert "second/loss" in found and "heldout/loss" not in found
    code, _, error = run(capsys, f"--workdir={workdir}", *second, "--only=secnd")
    assert code == 2 and "did you mean second?" in error


def test_another_evaluator_takes_the_place_of_one_with_other_fields(workdir, capsys):
    flag = "--config.evals.heldout.evaluator=samples"
    code, found, error = run(capsys, f"--workdir={workdir}", flag)
    assert code == 0, error
    assert found == {"step": 8}
    dropped = "dropped baseline, level, resamples, which samples does not have"
    assert f"note: evals.heldout: {dropped}" in error
    # What is given on the command line itself is no leftover.
    given = "--config.evals.heldout.baseline=none"
    code, _, error = run(capsys, f"--workdir={workdir}", flag, given)
    assert code == 2 and "evals.heldout.baseline: found an unknown field" in error


def test_an_evaluator_that_does_not_fit_the_run_is_refused(workdir, capsys):
    flag = "--config.evals.heldout.evaluator=predictions"
    code, _, error = run(capsys, f"--workdir={workdir}", flag)
    assert code == 2
    assert "which needs labels" in error.splitlines()[-1]


def test_what_is_no_number_is_null_in_json_and_said():
    notes = []
    text = evaluate.to_json(
        {"dev/auc": math.nan, "dev/f1": 0.5, "step": 3}, notes.append
    )
    assert json.loads(text) == {"dev/auc": None, "dev/f1": 0.5, "step": 3}
    (note,) = notes
    assert note.startswith("dev/auc: null, for its value is nan")
