"""The progress of a run: everything that a checkpoint restores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.training import averaging, guard
from lm.training.averaging import Trigger
from lm.training.guard import Best, Faults, Stop
from lm.training.step import State


@dataclass(frozen=True)
class Progress:
    """The progress of a run after `step`.

    A checkpoint holds the state as arrays and the rest as `asdict()`.

    Attributes:
      step: the last update made, or 0.
      state: parameters and optimiser; its buffers are the next update's to take.
      stop: what ends the run early (`config.stop`).
      data: the identity of the data, which a resume compares.
      best: the metric that `config.checkpoint.best` follows.
      following: the metric that early stopping follows.
      trigger: what begins the average of the weights (`optim.average_when`).
      faults: the batches and updates that were left out.
      row: the values of this step's row while its evaluations are still to come.
      base: names the frozen weights under an adapter (lm/adapted.py); None: there are
        none.
      teacher: names the weights of the teacher (lm/distilled.py), likewise.
    """

    step: int
    state: State
    stop: Stop
    data: Mapping[str, Any]
    best: Best
    following: Best
    trigger: Trigger = field(default_factory=Trigger)
    faults: Faults = field(default_factory=Faults)
    row: Mapping[str, Any] | None = None
    base: Mapping[str, str] | None = None
    teacher: Mapping[str, str] | None = None

    @staticmethod
    def begin(config: Config, data: Mapping[str, Any]) -> "Progress":
        """Returns the progress before the first step, without a state yet."""
        nothing: Any = {}
        stop = configs.build(Stop, config.stop)
        best = Best(config.checkpoint.best, config.checkpoint.best_mode)
        followed = best, guard.follow(stop), Trigger.of(config)
        return Progress(0, State(nothing), stop, data, *followed)

    def advance(self, state: State) -> "Progress":
        """Returns the progress after one more update, which gave `state`."""
        return replace(self, step=self.step + 1, state=state)

    def observe(self, values: Mapping[str, Any]) -> "Progress":
        """Returns the progress after the evaluations of this step, whose row is whole.

        Raises:
          ConfigError: an evaluation ran and lacks the metric that is followed.
        """
        state, trigger = self.state, self.trigger.observe(self.step, values)
        if trigger.step != self.trigger.step:
            begins = averaging.begin(state.average_from, self.step)
            state = state._replace(average_from=begins)
        return replace(
            self,
            state=state,
            best=self.best.observe(self.step, values),
            following=self.following.observe(self.step, values),
            trigger=trigger,
            row=None,
        )

    def undefined(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yields a line for each metric followed that is not a finite number."""
        for followed in {b.metric: b for b in (self.best, self.following)}.values():
            if (line := guard.undefined(followed, values)) is not None:
                yield line

    def asdict(self) -> dict[str, Any]:
        """Returns all but the arrays, for JSON."""
        return {
            "data": self.data,
            "stop": self.following.asdict(),
            "best": self.best.asdict(),
            **(
                {}
                if self.trigger.metric is None
                else {"average": self.trigger.asdict()}
            ),
            **self.faults.asdict(),
            **({} if self.row is None else {"row": dict(self.row)}),
            **({} if self.base is None else {"base": dict(self.base)}),
            **({} if self.teacher is None else {"teacher": dict(self.teacher)}),
        }

    def resume(self, host: Mapping[str, Any], state: State) -> "Progress":
        """Restores the progress from a checkpoint.

        If the batch size has changed, the data continue after the examples seen.

        Args:
          host: the result of `asdict` in the checkpoint.
          state: the checkpoint's arrays.
        """
        step, faults = int(state.step), Faults.resume(host)
        then, now = host["data"].get("batch_size"), self.data.get("batch_size")
        if then is not None and now is not None and then != now:
            faults = faults.resize(step, then, now)
        return replace(
            self,
            step=step,
            state=state,
            best=guard.Best(self.best.metric, self.best.mode).resume(host["best"]),
            following=guard.follow(self.stop).resume(host["stop"]),
            trigger=self.trigger.resume(host.get("average")),
            faults=faults,
            row=host.get("row"),
        )

    def batches(self, total: int) -> tuple[int, int]:
        """Returns the number of the next batch, and that after the last one.

        Args:
          total: the last step of the run.
        """
        first = self.faults.batch(self.step + 1)
        return first, max(self.faults.batch(total), first) + 1

    @property
    def rows(self) -> int:
        """The step of the last row in the metrics file."""
        return self.step if self.row is None else self.step - 1

    @property
    def why(self) -> str:
        """Why early stopping ends the run at this step; "" if it does not."""
        return guard.why_enough(self.following) if self.enough else ""

    @property
    def enough(self) -> bool:
        """Whether early stopping ends the run at this step."""
        return guard.enough(self.stop, self.following)
