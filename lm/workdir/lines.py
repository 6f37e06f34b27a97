"""Breaks lines for a terminal of 80 columns."""

from collections.abc import Sequence

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
