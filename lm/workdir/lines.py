"""Formats figures, and breaks lines for a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80


def wrap(parts: Sequence[str], separator: str, indent: str = "    ") -> str:
    """Joins parts to lines of at most 80 columns, without breaking a part.

    Args:
      separator: between two parts of a line; at the end of a line without its space.
      indent: begins all lines but the first.
    """
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(separator) + len(part) < WIDTH:
            lines[-1] += separator + part
        else:
            lines[-1] += separator.rstrip()
            lines.append(indent + part)
    return "\n".join(lines)


def figures(values: Mapping[str, Any]) -> dict[str, str]:
    """Formats metrics by name, each with its interval if it has one.

    `<metric>_low` and `<metric>_high` become "0.8123 [0.8012, 0.8234]" of the metric.
    """
    shown = {}
    for name, value in sorted(values.items()):
        metric, _, end = name.rpartition("_")
        if end in ("low", "high") and metric in values:
            continue
        shown[name] = f"{float(value):.4f}"
        bounds = [values.get(f"{name}_{end}") for end in ("low", "high")]
        if None not in bounds:
            low, high = (f"{float(bound):.4f}" for bound in bounds if bound is not None)
            shown[name] += f" [{low}, {high}]"
    return shown
