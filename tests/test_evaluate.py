"""lm.evaluate: the same numbers as in training, from any checkpoint."""

import functools
import json

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
    often = functools.partial(timing.told, every=0)
    monkeypatch.setattr(timing, "told", often)
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
