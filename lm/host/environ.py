"""Reads numbers from variables of the environment, within bounds."""

import os
from collections.abc import Mapping

from lm.errors import ConfigError

DAY = 86_400  # seconds


def whole(
    name: str,
    default: int | None = None,
    low: int = 1,
    high: int = 7 * DAY,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Reads a whole number from `low` to `high`.

    Args:
      name: the variable.
      default: for a variable that is unset or empty; None: it must be set.

    Raises:
      ConfigError: it has another value; names the variable.
    """
    text = environ.get(name, "").strip()
    if not text and default is not None:
        return default
    plain = text.isascii() and text.isdecimal() and len(text) < 16
    if not plain or not low <= int(text) <= high:
        shown = repr(text[:40]) if text else "nothing"
        raise ConfigError(name, shown, f"a whole number from {low} to {high}")
    return int(text)
