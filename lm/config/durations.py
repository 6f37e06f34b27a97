"""Converts durations to steps: steps, epochs, examples, tokens or percent."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lm.errors import ConfigError

UNITS = ("steps", "epochs", "examples", "tokens", "percent")
FORMS = '1000, "10%", "3 epochs", "5000 examples", "1e6 tokens"'
_PATTERN = re.compile(r"([-+]?\d[\d_]*(?:\.\d*)?(?:e[-+]?\d+)?)\s*(%|[a-z]+)")


def parse(value: object) -> tuple[Fraction, str] | None:
    """Parses a duration to (number, unit of UNITS); None where it is not one.

    The number is exact, so that 7 % of 100 steps are 7. Steps must be whole numbers, a
    percentage at most 100.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e3 steps
    if isinstance(value, int) and not isinstance(value, bool):
        return (Fraction(value), "steps") if abs(value) < 2**63 else None
    found = isinstance(value, str) and _PATTERN.fullmatch(value.strip().lower())
    if not found:
        return None
    name = "percent" if found[2] == "%" else found[2]
    unit = next((u for u in UNITS if name in (u, u.removesuffix("s"))), None)
    try:
        number = float(found[1])
    except ValueError:  # an underscore in the wrong place
        return None
    # An exact 1e-999999999 would fill the memory, so the float is looked at first.
    if unit is None or abs(number) > 1e18 or 0 < abs(number) < 1e-18:
        return None
    exact = Fraction(found[1].replace("_", "")) if number else Fraction(0)
    if (unit == "percent" and exact > 100) or (unit == "steps" and exact % 1):
        return None
    return exact, unit


def to_steps(
    duration: int | str,
    *,
    batch_size: int,
    seq_len: int,
    examples_per_epoch: int | None = None,
    total_steps: int | None = None,
    where: str = "duration",
    least: int = 1,
) -> int:
    """Converts a duration to steps.

    Epochs, examples and tokens are rounded up, so that none is missed. A percentage is
    rounded down, but not to 0. A step counts as batch_size * seq_len tokens, padding
    included.

    Args:
      where: the field, for the error.
      least: the smallest number of steps allowed; 0 for a warmup.

    Raises:
      ConfigError: not a duration, below `least`, beyond 2**31 - 1 steps, in epochs
        without `examples_per_epoch`, or in percent without `total_steps`.
    """
    parsed = parse(duration)
    if parsed is None:
        raise ConfigError(where, repr(duration), f"a duration: {FORMS}")
    number, unit = parsed
    per_step = {"steps": 1, "examples": batch_size, "tokens": batch_size * seq_len}
    if unit in per_step:
        steps = math.ceil(number / per_step[unit])
    elif unit == "epochs" and examples_per_epoch is not None:
        steps = math.ceil(number * examples_per_epoch / batch_size)
    elif unit == "percent" and total_steps is not None:
        steps = max(math.floor(number * total_steps / 100), math.ceil(number / 100))
    else:
        raise ConfigError(
            where, repr(duration), f"a duration not in {unit}, whose total is unknown"
        )
    if not least <= steps < 2**31:
        found = f"{duration!r}, which is {steps} steps"
        raise ConfigError(where, found, f"{least} to 2147483647 steps")
    return steps


def is_time(step: int, every: int, total: int) -> bool:
    """Returns whether something that happens every `every` steps is due after a step.

    It is due after the last step in any case.
    """
    return step % every == 0 or step == total


@dataclass(frozen=True)
class Times:
    """The schedule of a run, in steps.

    Attributes:
      total: the last step.
      save: steps from one checkpoint to the next.
      log: steps from one line of the log to the next.
      evals: for each evaluation, steps from one to the next.
    """

    total: int
    save: int
    log: int
    evals: dict[str, int]

    @staticmethod
    def of(config: Any, steps_of: Callable[..., int]) -> "Times":
        """Makes the schedule of a config; `steps_of` converts a duration to steps."""
        return Times(
            total=steps_of(config.steps),
            save=steps_of(config.checkpoint.every),
            log=steps_of(config.log.every),
            evals={name: steps_of(e.every) for name, e in config.evals.items()},
        )

    def to_save(self, step: int) -> bool:
        """Returns whether a checkpoint is due after a step."""
        return is_time(step, self.save, self.total)

    def to_evaluate(self, step: int) -> list[str]:
        """Returns the evaluations that are due after a step."""
        every = self.evals.items()
        return [name for name, n in every if is_time(step, n, self.total)]
