"""The whole path: a run, its rows, its resume, its refusals."""

import json
import shutil

import numpy as np
import pytest

from lm.config import resolve as configs
from lm.errors import CheckpointError, ConfigError, NumericalError
from tests import tiny

PAIRS = {
    "objective": {"name": "mlm", "next": "nsp"},
    "data__pack": False,
    "data__sources": [
        {"name": "memory", "items": tiny.documents(12), "weight": 3.0},
        {"name": "memory", "items": tiny.documents(6, seed=2), "weight": 1.0},
    ],
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 8 steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    assert tiny.run({}, workdir) == 0
    return workdir


def test_a_run_leaves_what_it_promises(straight):
    rows = tiny.rows(straight)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    assert "heldout/perplexity" in rows[3]
    assert "heldout/perplexity" not in rows[2]
    assert rows[7]["heldout/loss"] < rows[3]["heldout/loss"]
    timing = [json.loads(r) for r in (straight / "timing.jsonl").open()]
    assert {"step_seconds", "tokens_per_second", "waiting"} <= timing[-1].keys()
    config = configs.from_json((straight / "config.json").read_text())
    assert config.model.num_layers == 2
    assert (straight / "checkpoints" / "8").is_dir()
    assert (straight / "tokenizer").is_dir()


def test_the_same_config_gives_the_same_run(straight, tmp_path):
    tiny.run({}, tmp_path)
    assert tiny.raw_rows(tmp_path) == tiny.raw_rows(straight)
    assert tiny.state_bits(tmp_path) == tiny.state_bits(straight)


def test_another_seed_gives_another_run(straight, tmp_path):
    tiny.run({"seed": 4}, tmp_path)
    assert tiny.rows(tmp_path)[0]["train/loss"] != tiny.rows(straight)[0]["train/loss"]


def stop_after(monkeypatch, step):
    """The next run is told to stop after `step`, as SIGTERM tells it."""
    from lm.host import process

    asked = process.Preemption.requested
    monkeypatch.setattr(
        process.Preemption, "requested", lambda self, s: s == step or asked(self, s)
    )


@pytest.mark.parametrize(
    "changes, steps, stop",
    [
        ({}, 8, 3),  # mid-epoch, packed
        # the second epoch
        pytest.param({"steps": 16}, 16, 13, marks=pytest.mark.slow),
        # pairs with NSP, mixing, a later epoch
        pytest.param(PAIRS | {"steps": 14}, 14, 11, marks=pytest.mark.slow),
        pytest.param({"grad_accum": 2}, 8, 5, marks=pytest.mark.slow),
    ],
    ids=["packed", "later-epoch", "pairs-mixed", "accumulated"],
)
def test_stop_and_resume_is_the_straight_run(
    tmp_path, monkeypatch, changes, steps, stop
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert tiny.run(changes, whole) == 0
    with monkeypatch.context() as patched:
        stop_after(patched, stop)
        assert tiny.run(changes, stopped) == 75
    assert [row["step"] for row in tiny.rows(stopped)] == list(range(1, stop + 1))
    assert tiny.run(changes, stopped) == 0
    assert tiny.raw_rows(stopped) == tiny.raw_rows(whole)
    assert tiny.state_bits(stopped) == tiny.state_bits(whole)
    assert tiny.host(stopped) == tiny.host(whole)


def test_resume_falls_in_a_later_epoch_of_these_configs(tmp_path):
    """What the names of the cases above claim."""
    for changes, step in (({"steps": 16}, 13), (PAIRS, 11)):
        corpus, _ = tiny.program(tiny.config(**changes), tmp_path / str(step))
        epochs = {corpus.stream.locate(n)[1] for n in range(step * 8, step * 8 + 8)}
        assert min(epochs) >= 1, (len(corpus.stream), epochs)


def test_a_run_that_lost_its_last_rows_writes_them_again(straight, tmp_path):
    tiny.run({"steps": 8}, tmp_path)
    rows = tiny.raw_rows(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 9, "train/lo')
    assert tiny.run({"steps": 8}, tmp_path) == 0
    assert tiny.raw_rows(tmp_path) == rows == tiny.raw_rows(straight)


def test_a_finished_run_says_so(straight, capsys):
    from lm import train

    assert train.train(tiny.config(), straight) == 0
    shown = capsys.readouterr().out
    assert f"finished at step 8: {straight}" in shown
    assert "compiled" not in shown


def test_a_frozen_field_may_not_change(straight):
    with pytest.raises(CheckpointError, match=r"model.d_model.*32.*16"):
        tiny.run({"model__d_model": 32}, straight)


def test_a_changeable_field_may_change(tmp_path):
    tiny.run({"steps": 4}, tmp_path)
    assert tiny.run({"steps": 6}, tmp_path) == 0
    assert "changed: steps from 4 to 6" in (tmp_path / "run.log").read_text()


def test_other_data_are_refused(tmp_path):
    tiny.run({"steps": 4}, tmp_path)
    other = [{"name": "memory", "items": tiny.documents(60, seed=9)}]
    with pytest.raises(CheckpointError, match=r"data\.sources|fingerprint"):
        tiny.run({"steps": 6, "data__sources": other}, tmp_path)
    allowed = tuple(
        path
        for path, _, _, changeable in configs.changes(
            tiny.config(steps=4), tiny.config(steps=6, data__sources=other)
        )
        if not changeable
    )
    with pytest.raises(CheckpointError, match="data fingerprint: rows"):
        tiny.run({"steps": 6, "data__sources": other}, tmp_path, allow_change=allowed)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path):
    huge = {"optim": {"name": "sgd", "lr": 1e38, "clip": 0.0, "schedule": "constant"}}
    with pytest.raises(NumericalError, match=r"step 1: .*finite numbers"):
        tiny.run(huge | {"checkpoint__every": 1}, tmp_path)
    for step in (tmp_path / "checkpoints").glob("[0-9]*"):
        assert int(step.name) < 8
    assert all(np.isfinite(row["train/loss"]) for row in tiny.rows(tmp_path))


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(tmp_path):
    changes = {
        "steps": 40,
        "optim__lr": 1e-9,
        "optim__warmup": 0,
        "evals__heldout__every": 2,
        "stop": {"metric": "heldout/loss", "patience": 2, "min_delta": 0.5},
        "checkpoint": {"every": 40, "best": "heldout/loss"},
    }
    assert tiny.run(changes, tmp_path) == 0
    assert tiny.rows(tmp_path)[-1]["step"] == 6  # one best, then two without gain
    best = json.loads((tmp_path / "checkpoints" / "best").read_text())
    losses = {
        row["step"]: row["heldout/loss"]
        for row in tiny.rows(tmp_path)
        if "heldout/loss" in row
    }
    assert best["step"] == min(losses, key=losses.get)
    assert best["value"] == pytest.approx(losses[best["step"]])
    assert tiny.run(changes, tmp_path) == 0  # finished, and says so
    assert tiny.rows(tmp_path)[-1]["step"] == 6


def test_init_takes_weights_and_tokenizer(straight, tmp_path):
    records = [{"text": r["text"], "label": i % 2} for i, r in enumerate(DOCS)]
    source = {"sources": [{"name": "memory", "items": tuple(records)}]}
    changes = {
        "objective": {"name": "classification"},
        "data": source,
        "evals": {"dev": {"evaluator": "predictions", "data": source, "every": 4}},
        "tokenizer": None,
        "init": {
            "source": str(straight),
            "missing": ("pooler/.*", "heads/classify/.*"),
        },
        "steps": 4,
    }
    assert tiny.run(changes, tmp_path) == 0
    log = (tmp_path / "run.log").read_text()
    assert "fresh: heads/classify/kernel" in log
    assert "unused: heads/mlm/bias" in log
    assert 0 <= tiny.rows(tmp_path)[-1]["dev/accuracy"] <= 1
    with pytest.raises(CheckpointError, match="heads/classify/kernel"):
        tiny.run(
            changes | {"init": {"source": str(straight)}}, tmp_path.with_name("other")
        )


DOCS = tiny.documents(24, seed=5)


def test_a_batch_that_does_not_divide_stops_before_compiling(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size.*multiple of 8"):
        tiny.run({"batch_size": 12, "mesh": {"data": 8}}, tmp_path)
