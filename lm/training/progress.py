"""Where a run stands: all that a checkpoint brings back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lm.training import guard
from lm.training.guard import Best, Faults, Stop
from lm.training.step import State


@dataclass(frozen=True)
class Progress:
    """Where a run stands after the update of `step`.

    Its arrays go into a checkpoint as they are, the rest as `asdict()`.

    Attributes:
      step: the last update made, or 0.
      state: parameters and optimiser; its buffers are the next update's to take.
      stop: what ends the run early (`config.stop`).
      data: what the checkpoints keep to recognise the data.
      best: the metric that `config.checkpoint.best` follows.
      following: the metric that early stopping follows.
      faults: the batches that were left out, and the updates.
    """

    step: int
    state: State | None
    stop: Stop
    data: Mapping[str, Any]
    best: Best
    following: Best
    faults: Faults = field(default_factory=Faults)

    @staticmethod
    def begin(stop: Stop, best: Best, data: Mapping[str, Any]) -> "Progress":
        """Returns where a run stands before its first step, without a state yet."""
        return Progress(0, None, stop, data, best, guard.follow(stop))

    def advance(self, state: State) -> "Progress":
        """Returns the progress after one more update, which gave `state`."""
        return replace(self, step=self.step + 1, state=state)

    def observe(self, values: Mapping[str, Any]) -> "Progress":
        """Returns the progress after the evaluations of this step.

        Raises:
          ConfigError: an evaluation ran and lacks the metric that is followed.
        """
        return replace(
            self,
            best=self.best.observe(self.step, values),
            following=self.following.observe(self.step, values),
        )

    def asdict(self) -> dict[str, Any]:
        """Returns all but the arrays, for JSON."""
        return {
            "data": self.data,
            "stop": self.following.asdict(),
            "best": self.best.asdict(),
            **self.faults.asdict(),
        }

    def resume(self, host: Mapping[str, Any], state: State | None) -> "Progress":
        """Returns where the run stood when its checkpoint was saved.

        Args:
          host: what `asdict` gave then; what it lacks has not happened.
          state: the checkpoint's arrays; None to look at the rest alone.
        """
        return replace(
            self,
            step=self.step if state is None else int(state.step),
            state=state,
            best=self.best.resume(host.get("best")),
            following=guard.follow(self.stop).resume(host.get("stop")),
            faults=Faults.resume(host),
        )

    def batches(self, total: int) -> tuple[int, int]:
        """Returns the number of the next batch, and that after the last one.

        Args:
          total: the last step of the run.
        """
        return self.faults.batch(self.step + 1), self.faults.batch(total) + 1

    @property
    def enough(self) -> bool:
        """Whether the run ends here, for want of improvement."""
        return guard.enough(self.stop, self.following)
