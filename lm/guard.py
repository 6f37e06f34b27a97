"""Part: what the host decides about a run: finite or not, better or not, enough."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lm.errors import ConfigError, NumericalError


@dataclass(frozen=True)
class Stop:
    """Early stopping, `config.stop`.

    Args:
      metric: "<eval>/<metric>", such as "heldout/loss"; None: never stop early.
      mode: whether a smaller or a larger value is better.
      patience: evaluations in a row without improvement after which the run ends.
      min_delta: an improvement is a value better than the best by more than this.
    """

    metric: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: int = 5
    min_delta: float = 0.0


BOUNDS = {"patience": "[1, inf)", "min_delta": "[0, inf)"}
CHANGEABLE = ("metric", "mode", "patience", "min_delta")


@dataclass(frozen=True)
class Best:
    """The best value of a metric so far: for early stopping and to keep a checkpoint.

    Goes into the checkpoint as `asdict()` and comes back by `resume`.

    Args:
      metric: "<eval>/<metric>"; None: nothing is followed.
      mode: whether a smaller or a larger value is better.
      min_delta: what an improvement must exceed.
      value: the best value; None before the first finite one.
      step: where it was seen.
      stale: evaluations since then.
    """

    metric: str | None
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    value: float | None = None
    step: int | None = None
    stale: int = 0

    def observe(self, step: int, metrics: Mapping[str, Any]) -> "Best":
        """The best after the row of `step`; one without an evaluation changes nothing.

        A value that is not finite is never better.

        Raises:
          ConfigError: the evaluation ran and has no metric of this name.
        """
        if self.metric is None:
            return self
        if self.metric not in metrics:
            evaluation = self.metric.partition("/")[0]
            known = sorted(k for k in metrics if k.startswith(f"{evaluation}/"))
            if known:
                raise _unknown_metric(self.metric, known)
            return self
        value = float(metrics[self.metric])
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
        """This one with what `saved` knows, if that followed the same metric.

        A changed `min_delta` holds from here on; another metric or mode starts afresh.
        """
        if not saved or (saved["metric"], saved["mode"]) != (self.metric, self.mode):
            return self
        return Best(**{**saved, "min_delta": self.min_delta})


def follow(stop: Stop) -> Best:
    """What early stopping follows, before the first evaluation."""
    return Best(stop.metric, stop.mode, stop.min_delta)


def enough(stop: Stop, best: Best) -> bool:
    """Whether the run ends here, for want of improvement."""
    return stop.metric is not None and best.stale >= stop.patience


def check_finite(step: int, metrics: Mapping[str, Any]) -> None:
    """Refuses a row of training measurements (`train/*`, `optim/*`) that is not finite.

    An evaluation's metric may be infinite or undefined; it stops nothing.

    Raises:
      NumericalError: names the step and each such metric.
    """
    bad = {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith(("train/", "optim/")) and not math.isfinite(float(value))
    }
    if bad:
        raise NumericalError(
            f"step {step}",
            ", ".join(f"{name} = {value}" for name, value in sorted(bad.items())),
            "finite numbers",
            "lower optim.lr, lengthen its warmup, or clip the gradient; "
            "the last checkpoint is from before this step",
        )


def _unknown_metric(metric: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
    return ConfigError(
        f"metric {metric}",
        "an evaluation that does not yield it",
        f"one of {', '.join(known)}",
        f'did you mean "{near}"?',
    )
