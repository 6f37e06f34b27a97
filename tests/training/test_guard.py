"""Early stopping, keep-best, the check for numbers that are not finite."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError, NumericalError
from lm.training.guard import (
    Best,
    Faults,
    Stop,
    check_same,
    enough,
    follow,
    judge,
    nonfinite,
)

NAN, INF = float("nan"), float("inf")


def run(stop: Stop, values: list[float]) -> tuple[Best, int | None]:
    """The best after these evaluations, and at which of them the run ends."""
    best = follow(stop)
    for step, value in enumerate(values, start=1):
        best = best.observe(step, {"heldout/loss": value, "train/loss": 0.0})
        if enough(stop, best):
            return best, step
    return best, None


@pytest.mark.parametrize(
    ("values", "options", "value", "step", "end"),
    [
        ([3, 2, 1], {}, 1, 3, None),
        ([3, 2, 2.5, 2.2, 9], {}, 2, 2, 4),
        ([3, 4, 2, 4, 1], {}, 1, 5, None),  # One bad evaluation is forgiven.
        ([1, 2, 3, 2, 1, 9], {"mode": "max"}, 3, 3, 5),
        ([3, 2.95, 2.92, 1], {"min_delta": 0.1}, 3, 1, 3),
        ([3, 3, 3], {}, 3, 1, 3),  # An equal value is no improvement.
        ([NAN, 5, NAN, INF], {}, 5, 2, 4),
        ([NAN, NAN], {}, None, None, 2),
        ([INF, 5], {"mode": "max"}, 5, 2, None),
        ([5, INF, 4], {"mode": "max"}, 5, 1, 3),
        ([1, 2, 3, 4], {"metric": None}, None, None, None),
    ],
)
def test_stops_after_patience_evaluations_without_improvement(
    values, options, value, step, end
):
    stop = Stop(**{"metric": "heldout/loss", "patience": 2, **options})
    best, ended = run(stop, values)
    assert (best.value, best.step, ended) == (value, step, end)


def test_a_row_without_the_evaluation_changes_nothing():
    best = Best("heldout/loss", value=1.0, step=3, stale=1)
    assert best.observe(4, {"train/loss": 0.5, "other/loss": 0.1}) is best


def test_a_metric_that_the_evaluation_lacks_is_refused_with_the_nearest():
    metrics = {"heldout/loss": 1.0, "heldout/accuracy": 0.5, "other/f1": 0.1}
    with pytest.raises(ConfigError) as caught:
        Best("heldout/acuracy").observe(4, metrics)
    assert 'did you mean "heldout/accuracy"?' in str(caught.value)
    assert "other/f1" not in str(caught.value)


def test_the_state_survives_json_and_decides_as_before():
    stop = Stop("heldout/loss", patience=3)
    before, _ = run(stop, [3.0, np.float32(0.1), 2.0])
    after = follow(stop).resume(json.loads(json.dumps(before.asdict())))
    assert after == before
    assert not enough(stop, after.observe(9, {"heldout/loss": 1.0}))
    stale = after.observe(9, {"heldout/loss": 1.0}).observe(10, {"heldout/loss": 2.0})
    assert enough(stop, stale)
    assert after.value == np.float32(0.1)


def test_another_metric_starts_afresh_and_another_delta_keeps_the_best():
    saved = Best("a/loss", value=1.0, step=2, stale=1).asdict()
    assert Best("a/loss", "max").resume(saved).value is None
    assert Best("b/loss").resume(saved).value is None
    assert Best("a/loss").resume(None).value is None
    assert Best("a/loss", min_delta=0.5).resume(saved) == Best(
        "a/loss", min_delta=0.5, value=1.0, step=2, stale=1
    )


@pytest.mark.parametrize("bad", [NAN, INF, -INF, np.float32("nan"), jnp.inf])
def test_a_training_number_that_is_not_finite_is_refused_by_name(bad):
    row = {"train/loss": 1.0, "optim/gradient_norm": bad, "heldout/perplexity": INF}
    fault = nonfinite(7, row)
    assert fault.exit_code == 6
    assert "step 7" in str(fault) and "optim/gradient_norm" in str(fault)
    assert "train/loss" not in str(fault)


def test_an_evaluation_may_be_infinite():
    row = {"train/loss": 1.0, "heldout/perplexity": INF, "heldout/auc": NAN}
    assert nonfinite(7, row) is None


def row(loss, applied=1.0):
    return {"train/loss": loss, "optim/applied": applied, "optim/gradient_norm": loss}


@pytest.mark.parametrize("kind", ["stop", "skip", "rollback"])
def test_what_follows_a_loss_that_is_not_finite(kind):
    stop = Stop(on_nonfinite=kind)
    assert judge(stop, Faults(), 3, row(1.0))[1:] == (None, "go on")
    faults, fault, action = judge(stop, Faults(), 3, row(NAN, applied=0.0))
    assert action == kind and "step 3" in str(fault)
    assert faults.refused == ((3,) if kind == "skip" else ())


def test_an_update_that_was_applied_cannot_be_skipped():
    stop, wide = Stop(on_nonfinite="skip"), {"optim/parameter_norm": INF}
    assert judge(stop, Faults(), 3, row(1.0) | wide)[2] == "stop"


@pytest.mark.parametrize("kind", ["skip", "rollback"])
def test_after_max_skips_the_run_ends(kind):
    stop, faults, actions = Stop(on_nonfinite=kind, max_skips=2), Faults(), []
    for step in (5, 10, 15):
        faults, _, action = judge(stop, faults, step, row(INF, applied=0.0))
        actions.append(action)
        if action == "rollback":
            faults = faults.back_to(faults, step - 2, step)
    assert actions == [kind, kind, "stop"]


def test_a_spike_is_seen_against_the_last_losses_only():
    stop, faults = Stop(on_spike="rollback", window=5, spike=4.0), Faults()
    for step, loss in enumerate([9.0, 2.0, 2.1, 1.9, 2.0, 2.1, 2.0], start=1):
        faults, _, action = judge(stop, faults, step, row(loss))
        assert action == "go on"
    assert faults.recent == (2.1, 1.9, 2.0, 2.1, 2.0)
    after, fault, action = judge(stop, faults, 8, row(2.9))
    assert action == "rollback" and "deviations above 2.02" in str(fault)
    assert after == faults  # it is no measure for the next
    assert judge(stop, faults, 8, row(2.2))[2] == "go on"
    assert judge(stop, faults, 8, row(0.1))[2] == "go on"  # lower is no spike
    assert judge(Stop(), faults, 8, row(99.0))[2] == "go on"


def test_the_batches_of_a_window_are_left_out_and_no_other():
    """Steps 1.. read batches 0..; the windows before two faults are skipped."""
    faults = Faults()
    assert [faults.batch(step) for step in (1, 2, 3)] == [0, 1, 2]
    saved = faults
    faults = faults.back_to(saved, 4, 7)  # a fault at step 7, the checkpoint of step 4
    assert [faults.batch(step) for step in (4, 5, 6)] == [3, 7, 8]
    again = faults.back_to(saved, 4, 5)  # another at once, before a new checkpoint
    assert [again.batch(step) for step in (4, 5, 6)] == [3, 8, 9]
    later = faults.back_to(faults, 6, 8)  # or one later, from a new checkpoint
    assert [later.batch(step) for step in (4, 6, 7, 8)] == [3, 8, 11, 12]


def test_faults_survive_json_and_old_checkpoints_have_none():
    faults = Faults(skipped=((4, 3),), refused=(2,), recent=(0.1, 2.0))
    assert Faults.resume(json.loads(json.dumps(faults.asdict()))) == faults
    assert Faults.resume({"skipped": [], "data": {}}) == Faults()


def test_two_results_of_one_update_are_told_by_leaf():
    check_same(3, {"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(NumericalError, match=r"b with bits 00000002.*00000003"):
        check_same(3, {"a": 1, "b": 2}, {"a": 1, "b": 3})
