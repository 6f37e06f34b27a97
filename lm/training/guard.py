"""Decides whether a step is sound, a metric better, and when the run ends early."""

import difflib
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lm.errors import ConfigError, NumericalError


@dataclass(frozen=True)
class Stop:
    """Sets when a run ends early or goes back; `config.stop`.

    Args:
      metric: "<eval>/<metric>", such as "heldout/loss"; None: never stop early.
      mode: whether a smaller or a larger value is better.
      patience: evaluations in a row without improvement after which the run ends.
      min_delta: an improvement is a value better than the best by more than this.
      on_nonfinite: what follows a loss or a gradient that is not finite. Its update is
        never applied. "stop" ends the run; "skip" goes on without it; "rollback" goes
        back to the last checkpoint and leaves out the batches since (Chowdhery et al.
        2022, section 5.1).
      on_spike: what follows a loss that is more than `spike` standard deviations above
        the mean of the last `window` losses.
      max_skips: how many updates may be skipped, or windows left out, before the run
        ends.
      recheck: every so many steps an update is computed twice, and a difference in a
        bit ends the run; 0 for never.
    """

    metric: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: int = 5
    min_delta: float = 0.0
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    on_spike: Literal["ignore", "stop", "rollback"] = "ignore"
    spike: float = 6.0
    window: int = 100
    max_skips: int = 10
    recheck: int = 0


BOUNDS = {
    "patience": "[1, inf)",
    "min_delta": "[0, inf)",
    "spike": "(0, inf)",
    "window": "[2, 10000]",
    "max_skips": "[0, inf)",
    "recheck": "[0, inf)",
}
CHANGEABLE = (
    "metric",
    "mode",
    "patience",
    "min_delta",
    "on_nonfinite",
    "on_spike",
    "spike",
    "window",
    "max_skips",
    "recheck",
)


FINITE = "finite numbers"


@dataclass(frozen=True)
class Best:
    """Keeps the best value of a metric, for early stopping or the best checkpoint.

    Goes into the checkpoint as `asdict()` and comes back by `resume`.

    Args:
      metric: "<eval>/<metric>"; None follows nothing.
      mode: whether a smaller or a larger value is better.
      min_delta: an improvement must be larger than this.
      value: the best value; None before the first finite one.
      step: the step of the best value.
      stale: evaluations since then without improvement.
    """

    metric: str | None
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    value: float | None = None
    step: int | None = None
    stale: int = 0

    def observe(self, step: int, metrics: Mapping[str, Any]) -> "Best":
        """Returns the best value after the row of `step`.

        A row without the evaluation changes nothing, and a value that is not finite is
        never better.

        Raises:
          ConfigError: the evaluation ran and has no metric of this name.
        """
        if (value := value_of(self.metric, metrics)) is None:
            return self
        if self._improves(value):
            return replace(self, value=value, step=step, stale=0)
        return replace(self, stale=self.stale + 1)

    def _improves(self, value: float) -> bool:
        if self.value is None or not math.isfinite(value):
            return math.isfinite(value)
        gain = self.value - value if self.mode == "min" else value - self.value
        return gain > self.min_delta

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def resume(self, saved: Mapping[str, Any] | None) -> "Best":
        """Restores the best value from a checkpoint, if it is of the same metric.

        A changed `min_delta` is used from here on; another metric or mode starts anew.
        """
        if not saved or (saved["metric"], saved["mode"]) != (self.metric, self.mode):
            return self
        return Best(**{**saved, "min_delta": self.min_delta})


def value_of(metric: str | None, metrics: Mapping[str, Any]) -> float | None:
    """Returns the value of a metric that is followed; None in a row without it.

    Raises:
      ConfigError: its evaluation ran and has no metric of this name.
    """
    if metric is None or metric in metrics:
        return None if metric is None else float(metrics[metric])
    evaluation = metric.partition("/")[0]
    known = sorted(k for k in metrics if k.startswith(f"{evaluation}/"))
    if known:
        raise _unknown_metric(metric, known)
    return None


def follow(stop: Stop) -> Best:
    """Returns the metric that early stopping follows, before any evaluation."""
    return Best(stop.metric, stop.mode, stop.min_delta)


def enough(stop: Stop, best: Best) -> bool:
    """Tells whether early stopping ends the run."""
    return stop.metric is not None and best.stale >= stop.patience


def why_enough(best: Best) -> str:
    """Describes why early stopping ends the run, for the log."""
    seen = "was never a finite number"
    if best.value is not None:
        seen = f"has been no better than {best.value:.6g} of step {best.step}"
    return f"{best.metric} {seen} for {best.stale} evaluations (stop.patience)"


def undefined(best: Best, metrics: Mapping[str, Any]) -> str | None:
    """Describes a value of the followed metric that is not finite; else None."""
    value = None if best.metric is None else metrics.get(best.metric)
    if value is None or math.isfinite(float(value)):
        return None
    return f"{best.metric} is {float(value)}, which is never better"


@dataclass(frozen=True)
class Faults:
    """Records batches and updates that were left out; saved as `asdict()`.

    Args:
      skipped: (after, count) pairs: `count` batches are left out after step `after`; a
        count below 0 comes from a change of the batch size (`resize`).
      refused: the steps whose update was not applied.
      recent: the last losses, to which the next one is compared.
    """

    skipped: tuple[tuple[int, int], ...] = ()
    refused: tuple[int, ...] = ()
    recent: tuple[float, ...] = ()

    def batch(self, step: int) -> int:
        """Returns the number of the batch, from 0, that a step, from 1, takes."""
        return step - 1 + sum(count for after, count in self.skipped if after < step)

    def back_to(self, saved: "Faults", start: int, step: int) -> "Faults":
        """Returns the faults after going back from `step` to the checkpoint of `start`.

        The batches from there up to that of `step` are left out.

        Args:
          saved: the faults in that checkpoint.
        """
        skipped = tuple(pair for pair in self.skipped if pair[0] <= start)
        if skipped[: len(saved.skipped)] != saved.skipped:
            skipped = saved.skipped  # Of another batch size: see `resize`.
        course = replace(saved, skipped=skipped)
        count = self.batch(step) + 1 - course.batch(start + 1)
        return replace(course, skipped=(*skipped, (start, count)))

    def resize(self, after: int, old: int, new: int) -> "Faults":
        """Returns the faults after a change of the batch size from `old` to `new`.

        The step after `after` goes on at the next example, or where a batch of the new
        size begins after it.
        """
        number = self.batch(after + 1)
        count = math.ceil(number * old / new) - number
        return replace(self, skipped=(*self.skipped, (after, count)))

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(value) for name, value in asdict(self).items()}

    @staticmethod
    def resume(saved: Mapping[str, Any]) -> "Faults":
        """Restores the faults that `asdict` returned; a missing field is empty."""
        return Faults(
            skipped=tuple(tuple(pair) for pair in saved.get("skipped", ())),
            refused=tuple(saved.get("refused", ())),
            recent=tuple(saved.get("recent", ())),
        )


def judge(
    stop: Stop, faults: Faults, step: int, metrics: Mapping[str, Any]
) -> tuple[Faults, NumericalError | None, str]:
    """Judges the measurements of a step.

    Returns:
      The faults with this step, the fault or None, and what is to be done about it:
      "go on", "skip", "stop" or "rollback".
    """
    fault = nonfinite(step, metrics)
    if fault is not None:
        action: str = stop.on_nonfinite
        if metrics.get("optim/applied", 1):  # The update itself was too large.
            action = "stop" if action == "skip" else action
    else:
        fault = _spike(stop, faults.recent, step, metrics)
        action = "go on" if fault is None else stop.on_spike
    if action == "go on" and "train/loss" in metrics and stop.on_spike != "ignore":
        recent = (*faults.recent, float(metrics["train/loss"]))[-stop.window :]
        faults = replace(faults, recent=recent)
    if action == "skip":
        faults = replace(faults, refused=(*faults.refused, step))
    met = {"skip": len(faults.refused), "rollback": len(faults.skipped) + 1}
    if met.get(action, 0) > stop.max_skips:
        action = "stop"
    return faults, fault, action


def nonfinite(step: int, metrics: Mapping[str, Any]) -> NumericalError | None:
    """Returns an error if a measurement (`train/*`, `optim/*`) is not finite.

    A metric of an evaluation may be infinite or undefined.
    """
    bad = {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith(("train/", "optim/")) and not math.isfinite(float(value))
    }
    if not bad:
        return None
    return NumericalError(
        f"step {step}",
        ", ".join(f"{name} = {value}" for name, value in sorted(bad.items())),
        FINITE,
        "lower optim.lr, lengthen its warmup, clip the gradient, or see "
        "stop.on_nonfinite; the last checkpoint is from before this step",
    )


def _spike(
    stop: Stop, recent: tuple[float, ...], step: int, metrics: Mapping[str, Any]
) -> NumericalError | None:
    if stop.on_spike == "ignore" or len(recent) < stop.window:
        return None
    loss, mean = float(metrics["train/loss"]), statistics.fmean(recent)
    deviation = max(statistics.pstdev(recent, mean), 1e-6 * abs(mean), 1e-12)
    score = (loss - mean) / deviation
    if score <= stop.spike:
        return None
    return NumericalError(
        f"step {step}",
        f"train/loss = {loss:.6g}, {score:.1f} deviations above {mean:.6g}",
        f"at most {stop.spike:g}, over {stop.window} steps (stop.spike)",
        "look at the examples, lower optim.lr, or see stop.on_spike",
    )


def check_same(step: int, first: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """Refuses an update that, computed twice, gave two results.

    Args:
      first, again: a number for each leaf of the state, made of its bits.

    Raises:
      NumericalError: names the first leaf that differs, and both numbers.
    """
    for path, number in first.items():
        if int(number) != int(again[path]):
            raise NumericalError(
                f"step {step}",
                f"{path} with bits {int(number):08x}, and computed again "
                f"{int(again[path]):08x}",
                "the same bits",
                "look for a faulty device; the last checkpoint is from before this",
            )


def _unknown_metric(metric: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
    return ConfigError(
        f"metric {metric}",
        "an evaluation that does not yield it",
        f"one of {', '.join(known)}",
        f'did you mean "{near}"?',
    )
