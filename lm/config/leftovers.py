"""Overrides that replace a class drop the fields of the class before.

Without this, `--config.evals.dev.evaluator=mean` would be refused for the metrics that
the evaluator before had.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from lm.config import files

# Sections of the top level that name a class.
SECTIONS = ("model", "objective", "tokenizer")


def override(
    tree: dict[str, Any],
    given: list[str] | Mapping[str, Any],
    names: Callable[[str, str], set[str] | None],
) -> None:
    """Sets fields in the tree of a config (`files.override`), and drops void ones.

    A line on stderr names what is dropped; a field that is itself given stays.

    Args:
      names: (kind of section, name of a class) -> the keys that it may have, or None
        where there is no such class.
    """
    before = {where: dict(section) for where, (_, section) in _named(tree).items()}
    files.override(tree, given)
    for where, (kind, section) in _named(tree).items():
        old, choice = before.get(where, {}), _choice(kind)
        if str(section.get(choice)) == str(old.get(choice)):
            continue
        wanted = names(kind, str(section.get(choice)))
        left = [
            key
            for key, value in old.items()
            if wanted is not None and key not in wanted and section.get(key) is value
        ]
        for key in left:
            del section[key]
        if left:
            new = section[choice]
            line = (
                f"note: {where}: dropped {', '.join(left)}, which {new} does not have"
            )
            print(line, file=sys.stderr)


def _choice(kind: str) -> str:
    return "evaluator" if kind == "evaluator" else "name"


def _named(tree: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Finds the sections that name a class: path -> (kind, section)."""
    evals = tree.get("evals")
    found = [(key, key, tree.get(key)) for key in SECTIONS]
    for name, section in (evals if isinstance(evals, dict) else {}).items():
        found.append((f"evals.{name}", "evaluator", section))
    return {at: (kind, it) for at, kind, it in found if isinstance(it, dict)}
