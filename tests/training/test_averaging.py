"""The average of the weights: what it is, who uses it, and that a resume keeps it."""

import dataclasses
import json
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from lm import evaluate, transfer, trees
from lm import run as runs
from lm.errors import ConfigError
from lm.training import averaging, optim
from lm.training.step import State
from lm.workdir import checkpoint
from lm.workdir.checkpoint import Checkpointer
from tests import tiny

EMA = {
    "steps": 6,
    "optim__ema": 0.7,
    "optim__clip": 0.0,
    "checkpoint": {"every": 1, "keep_last": 9},
    "evals__heldout__every": 3,
}


def leaves(workdir, step, part):
    """The arrays of a part of the state of a step, by path."""
    from orbax.checkpoint import v1 as ocp

    state = ocp.load_checkpointables(checkpoint.find(workdir, step))["state"]
    return {path: np.asarray(x) for path, x in trees.flatten(state[part]).items()}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    assert tiny.run(EMA, workdir) == 0
    return workdir


def test_the_average_is_that_of_a_written_out_loop(averaged, tmp_path):
    assert tiny.run(EMA | {"optim__ema": None}, tmp_path) == 0
    _, program = tiny.program(tiny.config(**EMA), tmp_path / "open")
    with jax.set_mesh(program.mesh):
        start = jax.device_get(program.init(jax.random.key(tiny.config(**EMA).seed)))
    expected = trees.flatten(start)
    for step in range(1, 7):
        params = leaves(averaged, step, "params")
        for path, x in leaves(tmp_path, step, "params").items():
            # The average changes no update, beyond the rounding of another program.
            np.testing.assert_allclose(params[path], x, atol=1e-5)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = {p: decay * expected[p] + (1 - decay) * params[p] for p in params}
    found = leaves(averaged, 6, "averaged")
    assert found.keys() == expected.keys()
    for path, x in found.items():
        np.testing.assert_allclose(x, expected[path], atol=2e-6)


def test_the_average_is_evaluated_and_the_weights_themselves_by_choice(
    averaged, capsys
):
    def loss(*flags):
        with tiny.some_devices(tiny.config(**EMA)):
            assert evaluate.main([f"--workdir={averaged}", *flags]) == 0
        return json.loads(capsys.readouterr().out)["heldout/loss"]

    by_training = tiny.rows(averaged)[-1]["heldout/loss"]
    assert loss() == loss("--weights=averaged") == pytest.approx(by_training, rel=1e-6)
    assert abs(loss("--weights=trained") - by_training) > 1e-3


@pytest.mark.slow
def test_init_source_takes_the_average_and_the_weights_themselves_by_choice(
    averaged, tmp_path
):
    for weights, part in (("averaged", "averaged"), ("trained", "params")):
        init = checkpoint.Init(source=str(averaged), weights=weights)
        _, program = tiny.program(tiny.config(**EMA), tmp_path / weights)
        params, report = transfer.load_params(init, program.params)
        expected = leaves(averaged, 6, part)
        assert report.unused == ()
        for path, x in trees.flatten(params).items():
            np.testing.assert_array_equal(x, expected[path])


# So large a learning rate that the loss rises early.
WHEN = {
    "optim": {
        "name": "sgd",
        "lr": 3.0,
        "schedule": "constant",
        "average_when": "heldout/loss",
        "average_patience": 1,
    },
    "evals__heldout__every": 1,
    "checkpoint": {"every": 1, "keep_last": 9},
}
FREE = {"optim": {"name": "schedule_free_adamw", "lr": 1e-2, "schedule": "constant"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__ema": 0.7},
        pytest.param(FREE, marks=pytest.mark.slow),
        pytest.param(WHEN, marks=pytest.mark.slow),
    ],
    ids=["ema", "schedule-free", "triggered"],
)
def test_a_resume_keeps_the_average_to_the_bit(tmp_path, monkeypatch, changes):
    from tests.test_train import stop_after

    changes = {"steps": 6, "evals__heldout__every": 3} | changes
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert tiny.run(changes, whole) == 0
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        assert tiny.run(changes, stopped) == 75
    assert tiny.run(changes, stopped) == 0
    assert tiny.raw_rows(stopped) == tiny.raw_rows(whole)
    bits = tiny.state_bits(whole)
    assert any("averaged" in path for path in bits)
    assert tiny.state_bits(stopped) == bits


def test_an_average_of_an_optimiser_that_averages_is_refused(tmp_path):
    settings = {"optim": {"name": "schedule_free_sgd", "lr": 1.0, "ema": 0.9}}
    with pytest.raises(ConfigError, match=r"optim\.ema: found 0\.9 with schedule_free"):
        tiny.run(settings, tmp_path)


class OldState(NamedTuple):
    """The state as it was saved before it had `carried` and `averaged`."""

    step: Any
    params: Any
    opt_state: Any


def test_a_checkpoint_of_the_old_state_goes_on_to_the_bit(tmp_path):
    old, whole = tmp_path / "old", tmp_path / "whole"
    changes = {"steps": 4, "checkpoint__every": 2, "evals": {}}
    assert tiny.run(changes, whole) == 0
    assert tiny.run(changes | {"steps": 2}, old) == 0
    config = json.loads((old / "config.json").read_text())
    del config["update"], config["optim"]["ema"], config["optim"]["weights"]
    (old / "config.json").write_text(json.dumps(config))
    corpus, program = tiny.program(tiny.config(**changes), tmp_path / "open")
    training = runs.open_training(
        corpus.config, corpus, program, runs.durations(corpus.config, corpus)
    )
    saver = Checkpointer(old, checkpoint.Checkpoint())
    saved, host = saver.restore(training.state.saved())
    saver.drop_after(1)
    state = State(**saved)
    saver.save(2, OldState(state.step, state.params, state.opt_state), host)
    saver.close()
    assert tiny.run(changes, old) == 0
    assert tiny.raw_rows(old) == tiny.raw_rows(whole)
    assert tiny.state_bits(old) == tiny.state_bits(whole)


def test_a_plain_average_begins_at_its_step():
    """Of the parameters after each update from there on; the trained ones before."""
    start = {"w": jax.numpy.array([1.0, -2.0])}
    settings = optim.Optim("sgd", 0.1, clip=0.0, weight_decay=0.0, average_from=2)
    settings = dataclasses.replace(settings, decay_mask=((".*", 0.0),))
    made = optim.make(settings, start, lambda _: 0.1)
    params, state, last, seen = start, made.init(start), start, []
    for step in range(1, 6):
        grads = {"w": params["w"] + step}
        updates, state = made.update(grads, state, params)
        params = jax.tree.map(jax.numpy.add, params, updates)
        last = made.average(params, state, last, {})
        seen.append(np.asarray(params["w"]))
        expected = np.mean(seen[2:], axis=0) if step > 2 else seen[-1]
        np.testing.assert_allclose(last["w"], expected, rtol=1e-6)


def test_there_is_one_kind_of_average():
    settings = optim.Optim("sgd", average_from=2, ema=0.9)
    with pytest.raises(ConfigError, match=r"optim\.average_from: found 2 with sgd"):
        optim.make(settings, {"w": jax.numpy.zeros(2)}, lambda _: 0.1)
    settings = optim.Optim("sgd", average_from=2, average_when="dev/loss")
    with pytest.raises(ConfigError, match=r"average_from: .*average_when='dev/loss'"):
        optim.make(settings, {"w": jax.numpy.zeros(2)}, lambda _: 0.1)


@pytest.mark.parametrize(
    ("patience", "losses", "begins"),
    [
        (1, (3.0, 2.0, 1.0, 2.5), 4),  # worse than the best of 3 and 2
        (1, (3.0, 2.0, 2.5, 2.2), 4),
        (2, (3.0, 2.0, 2.5, 2.2, 2.1), 5),
        (2, (3.0, 2.0, 2.5, 1.9, 1.8, 1.7), None),
        (2, (3.0, 2.0, math.nan, 1.9, 1.8, 1.7), None),
        (2, (3.0, 2.0, 1.0, math.nan), 4),
        (5, (1.0, 2.0, 2.0, 2.0, 2.0), None),
        (5, (1.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.2), 7),
    ],
)
def test_the_trigger_looks_past_the_last_evaluations(patience, losses, begins):
    """With a loss after each step; a resume between any two changes nothing."""
    trigger = averaging.Trigger("dev/loss", patience)
    for step, loss in enumerate(losses, 1):
        trigger = trigger.observe(step, {"train/loss": 9.0})
        assert trigger.step is None or trigger.step < step
        trigger = trigger.observe(step, {"dev/loss": loss})
        saved = json.loads(json.dumps(trigger.asdict()))
        assert averaging.Trigger("dev/loss", patience).resume(saved) == trigger
    assert trigger.step == begins
    with pytest.raises(ConfigError, match=r"dev/loss: .*an evaluation that does not"):
        averaging.Trigger("dev/loss").observe(1, {"dev/f1": 0.5})


@pytest.mark.slow
def test_a_triggered_average_is_that_of_all_weights_since(tmp_path):
    assert tiny.run(WHEN | {"steps": 8}, tmp_path) == 0
    rows = tiny.rows(tmp_path)
    losses = [row["heldout/loss"] for row in rows]
    begins = next(n for n in range(2, 8) if losses[n] > min(losses[: n - 1])) + 1
    assert 2 < begins < 7
    for step in range(1, 9):
        known = [
            leaves(tmp_path, n, "params") for n in range(min(begins, step), step + 1)
        ]
        for path, x in leaves(tmp_path, step, "averaged").items():
            expected = np.mean([each[path] for each in known], axis=0)
            np.testing.assert_allclose(x, expected, atol=1e-6)
    log = (tmp_path / "run.log").read_text()
    assert f"step {begins}: the average of the weights begins" in log


def test_an_average_waits_for_an_evaluation_that_exists(tmp_path):
    config = tiny.config(**WHEN | {"optim__average_when": "dev/loss"})
    with pytest.raises(ConfigError, match=r"average_when: .*dev/loss.*heldout"):
        tiny.run(config, tmp_path / "dev")
    config = tiny.config(**WHEN | {"optim__average_when": "heldout/f1"})
    with pytest.raises(ConfigError, match=r"average_when: .*heldout/f1"):
        runs.check(config)
