"""What a run does when it begins again: nothing lost, nothing decided unseen."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from lm import train
from lm.errors import CheckpointError
from lm.evaluators import mean
from tests import tiny
from tests.test_train import stop_after

SHORT = {"steps": 6, "checkpoint": {"every": 2, "keep_last": 9}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps with evaluations after the third and the sixth, saved every second."""
    workdir = tmp_path_factory.mktemp("straight")
    assert tiny.run(SHORT | {"evals__heldout__every": 3}, workdir) == 0
    return workdir


def same(workdir, other):
    assert tiny.raw_rows(workdir) == tiny.raw_rows(other)
    assert tiny.state_bits(workdir) == tiny.state_bits(other)
    assert tiny.host(workdir) == tiny.host(other)


def log(workdir):
    return (workdir / "run.log").read_text()


@pytest.mark.parametrize("failing", [3, 6])
def test_A2_an_evaluation_that_fails_costs_no_step(
    straight, tmp_path, monkeypatch, failing
):
    """Nor does it the second time; mended, the run is one in which nothing failed."""
    settings = SHORT | {"evals__heldout__every": 3}
    settings = settings | {"checkpoint": {"every": 6, "best": "heldout/loss"}}
    whole = tmp_path / "whole"
    assert tiny.run(settings, whole) == 0
    real, workdir = mean.Evaluator.run, tmp_path / "run"
    with monkeypatch.context() as patched:

        def run(self, *arguments):
            if len(tiny.rows(workdir)) == failing - 1:
                raise TypeError("an evaluation that does not work")
            return real(self, *arguments)

        patched.setattr(mean.Evaluator, "run", run)
        for _ in range(2):
            with pytest.raises(TypeError, match="does not work"):
                tiny.run(settings, workdir)
            assert (workdir / "checkpoints" / str(failing)).is_dir()
            assert len(tiny.rows(workdir)) == failing - 1
    assert f"step {failing} is saved; its evaluations are still" in log(workdir)
    assert tiny.run(settings, workdir) == 0
    same(workdir, whole)
    best = [json.loads((w / "checkpoints/best").read_text()) for w in (workdir, whole)]
    assert best[0] == best[1]


STOP = {"stop": {"metric": "heldout/loss", "patience": 5}}


def stopped_at_4(monkeypatch, workdir, changes):
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        assert tiny.run(changes, workdir) == 75


def test_F1_a_flipped_bit_of_the_host_file_finishes_no_run(tmp_path, monkeypatch):
    changes = SHORT | STOP | {"evals__heldout__every": 2}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert tiny.run(changes, whole) == 0
    stopped_at_4(monkeypatch, run, changes)
    file = run / "checkpoints" / "4" / "host.json"
    text = file.read_text()
    assert text.count('"stale": 0') == 2
    file.write_text(text.replace('"stale": 0', '"stale": 8'))
    with pytest.raises(CheckpointError, match=r"host\.json.*other bytes"):
        tiny.run(changes, run, strict=True)
    assert tiny.run(changes, run) == 0
    assert "checkpoint 4 is damaged" in log(run)
    same(run, whole)


@pytest.mark.parametrize("what", ["empty", "another"])
def test_F2_a_folder_of_the_last_step_finishes_no_run(
    straight, tmp_path, monkeypatch, what
):
    changes = SHORT | {"evals__heldout__every": 3}
    stopped_at_4(monkeypatch, tmp_path, changes)
    last = tmp_path / "checkpoints" / "6"
    if what == "empty":
        last.mkdir()
    else:
        shutil.copytree(tmp_path / "checkpoints" / "4", last)
    with pytest.raises(CheckpointError):
        tiny.run(changes, tmp_path, strict=True)
    assert tiny.run(changes, tmp_path) == 0
    assert "checkpoint 6 is damaged" in log(tmp_path)
    same(tmp_path, straight)


def test_C11_another_batch_size_goes_on_after_the_examples_seen(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    smaller = SHORT | {"steps": 8, "batch_size": 5, "evals__heldout__every": 3}
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    with pytest.raises(CheckpointError, match=r"batch_size.*allow-change=batch_size"):
        tiny.run(smaller, tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    assert tiny.run(smaller, tmp_path, allow_change=("batch_size",)) == 0
    # 48 examples are seen: batch 10 of five begins with example 50.
    numbers = [row["train/batch"] for row in tiny.rows(tmp_path)]
    assert numbers == [0, 1, 2, 3, 4, 5, 10, 11]
    assert "the data go on with example 50" in log(tmp_path)
    assert tiny.run(smaller | {"steps": 9}, tmp_path) == 0  # It is the run's own now.
    assert tiny.rows(tmp_path)[-1]["train/batch"] == 12


def test_C11_a_refused_command_changes_no_file_and_nothing_is_offered_in_vain(
    straight, tmp_path
):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "run.log"]
    before = {p: p.read_bytes() for p in files}
    for changes in ({"seed": 9}, {"seq_len": 20}):
        settings = SHORT | {"steps": 8, "evals__heldout__every": 3} | changes
        (path,) = changes
        with pytest.raises(CheckpointError, match=f"^{path}") as caught:
            tiny.run(settings, tmp_path)
        assert "allow-change" not in caught.value.line()
        with pytest.raises(CheckpointError):
            tiny.run(settings, tmp_path, allow_change=(path,))
        wider = settings | changes | {"model__d_ff": 64, "seed": 3, "seq_len": 24}
        with pytest.raises(CheckpointError):
            tiny.run(wider, tmp_path, allow_change=("model.d_ff",))
    assert before == {p: p.read_bytes() for p in before}


def test_C12_what_is_no_number_is_said_and_what_ended_the_run_too(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mean.Evaluator, "run", lambda *_: [("auc", np.float32("nan"))])
    stop = {"metric": "heldout/auc", "mode": "max", "patience": 2}
    changes = SHORT | {"stop": stop, "evals__heldout__every": 1}
    changes["checkpoint"] = {"every": 6, "best": "heldout/auc", "best_mode": "max"}
    assert tiny.run(changes, tmp_path) == 0
    assert [row["step"] for row in tiny.rows(tmp_path)] == [1, 2]
    why = "the run ended early: heldout/auc was never a finite number for 2 evaluations"
    assert "warning: step 2: heldout/auc is nan, which is never better" in log(tmp_path)
    assert log(tmp_path).count(why) == 1
    assert not (tmp_path / "checkpoints" / "best").exists()
    assert tiny.run(changes, tmp_path) == 0  # It says so again.
    assert log(tmp_path).count(why) == 2


def test_C15_fewer_steps_than_are_done_is_finished(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    settings = SHORT | {"steps": 4, "evals__heldout__every": 3}
    opened, compiled = (log(tmp_path).count(w) for w in ("per device", "compiled in"))
    assert tiny.run(settings, tmp_path) == 0
    assert log(tmp_path).count("per device") == opened  # No model is opened.
    assert "finished at step 6" in log(tmp_path)
    assert "the run is beyond the 4 steps of the config" in log(tmp_path)
    same(tmp_path, straight)
    # Nor where the step that is left is beyond the end, the newest being damaged.
    (tmp_path / "checkpoints" / "6" / "leaves.json").write_text("{}")
    assert tiny.run(settings | {"steps": 3}, tmp_path) == 0
    assert "the run is beyond the 3 steps of the config" in log(tmp_path)
    assert log(tmp_path).count("compiled in") == compiled


def test_C25_a_course_of_the_learning_rate_that_changes_is_said(tmp_path):
    optim = {"name": "sgd", "lr": 0.1, "schedule": "linear", "warmup": 0, "clip": 0.0}
    changes = {"optim": optim, "evals": {}, "checkpoint": {"every": 2}}
    assert tiny.run(changes | {"steps": 4}, tmp_path) == 0
    assert tiny.run(changes | {"steps": 8}, tmp_path) == 0
    assert (
        "warning: the learning rate takes another course, over 8 steps rather than 4: "
        "at step 5 it is 0.05, by the config so far 0"
    ) in log(tmp_path)
    rates = [row["optim/lr"] for row in tiny.rows(tmp_path)]
    assert rates[4] == pytest.approx(0.05)


def test_F9_ctrl_c_while_the_end_is_summarised_is_done(tmp_path, monkeypatch):
    real = train.finished

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(train, "finished", interrupted)
    assert tiny.run({"steps": 2, "evals": {}}, tmp_path) == 0
    assert "finished at step 2" in log(tmp_path)
