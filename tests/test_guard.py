"""Early stopping, keep-best, the check for numbers that are not finite."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError, NumericalError
from lm.guard import Best, Stop, check_finite, enough, follow

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
    with pytest.raises(NumericalError) as caught:
        check_finite(7, row)
    assert caught.value.exit_code == 6
    assert "step 7" in str(caught.value) and "optim/gradient_norm" in str(caught.value)
    assert "train/loss" not in str(caught.value)


def test_an_evaluation_may_be_infinite():
    check_finite(7, {"train/loss": 1.0, "heldout/perplexity": INF, "heldout/auc": NAN})
