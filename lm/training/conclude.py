"""The end of a step: its evaluations, its row of metrics, and a checkpoint.

A step is an update of `lm/train.py` or a pass of `lm/fit.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import PyTree

from lm.config.durations import Times
from lm.host import timing, watch
from lm.training.progress import Progress
from lm.workdir.checkpoint import Checkpointer
from lm.workdir.writer import Writer, plain_row

# The values of a row of metrics, and those of a row of timing (`StepTimer.lap`).
Row = tuple[dict[str, Any], dict[str, float]]


class Life(NamedTuple):
    """What the end of a step works with.

    Attributes:
      times: when the run evaluates, saves and ends.
      evals: (parameters, step) -> metrics, for each evaluation by its name.
      checkpointer: writes the checkpoints.
      writer: writes the metrics and the log.
      watching: is told which phase begins.
      timer: measures the steps, without their evaluations and saves.
      weights: those to evaluate, "averaged" or "trained" (`State.weights`).
    """

    times: Times
    evals: Mapping[str, Callable[[PyTree, int], dict[str, float]]]
    checkpointer: Checkpointer
    writer: Writer
    watching: watch.Watch
    timer: timing.StepTimer
    weights: str = "averaged"


def conclude(life: Life, at: Progress, row: Row, last: bool) -> tuple[Progress, bool]:
    """Evaluates where that is due, writes the row, and saves where that is due.

    A step whose evaluation fails is saved before the failure ends the run. The same
    command again then begins with that evaluation, and `at.row` holds the values that
    the step has so far.

    Args:
      row: the values measured in the step, and its times.
      last: whether the run ends after this step in any case.

    Returns:
      The progress, and whether the run ends here.
    """
    values, lap = row
    was_kept, weights = at.row is not None, at.state.weights(life.weights)
    at = replace(at, row=plain_row(values))
    with life.timer.aside():
        try:
            for name in life.times.to_evaluate(at.step):
                life.watching.at(f"evaluation {name}", times=10)
                values |= life.evals[name](weights, at.step)
            began, at = at.trigger.step, at.observe(values)
        except Exception:
            keep(life, at)
            raise
    life.writer.row(at.step, values, lap)
    if at.trigger.step != began:
        life.writer.note(f"step {at.step}: {at.trigger.describe()}")
    for line in at.undefined(values):
        life.writer.note(f"warning: step {at.step}: {line}")
    over = last or at.enough
    if over or at.best.step == at.step or life.times.to_save(at.step):
        life.watching.at(f"save {at.step}")
        with life.timer.aside():
            if was_kept:  # The checkpoint of this step lacks its evaluations.
                life.checkpointer.drop_after(at.step - 1)
            save(life, at)
    return at, over


def keep(life: Life, at: Progress) -> None:
    """Saves a step whose evaluation has failed; a second failure is only a warning."""
    life.watching.at(f"save {at.step}")
    try:
        # A process whose evaluation has not failed does not come to this barrier.
        watch.barrier("failed evaluation", 30)
        save(life, at)
        life.checkpointer.wait()
        text = f"step {at.step} is saved; its evaluations are still to come"
    except Exception as error:
        text = f"warning: step {at.step} could not be saved: {error}"
    life.writer.note(text)


def save(life: Life, at: Progress) -> None:
    """Saves the progress after the rows of metrics are durable.

    A step that is saved already is left as it is.
    """
    life.writer.sync()
    value = at.best.value if at.best.step == at.step else None
    life.checkpointer.save(at.step, at.state.saved(), at.asdict(), value=value)
