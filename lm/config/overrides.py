"""Sets fields in the tree of a config: `--config.optim.lr=1e-4`, or values by path.

An item of a list is chosen by its number: `--config.data.sources.0.files=my.txt`. A
value from the command line stays `Text` until its field tells the type. An override
that replaces a class (`--config.evals.dev.evaluator=mean`) drops the fields that only
the class before had.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lm.config import classes, schema
from lm.config.files import plain
from lm.config.schema import Text, shown
from lm.errors import ConfigError

# The sections of the top level whose class an override may replace.
SECTIONS = ("model", "objective", "tokenizer")


def override(tree: dict[str, Any], given: list[str] | Mapping[str, Any]) -> None:
    """Sets fields in the tree, and drops those of a class that was replaced.

    A line on stderr names what is dropped. A field that is itself given stays.

    Args:
      tree: plain dicts and lists; it is changed.
      given: flags, `--config.<field>=<value>`, or values by dotted path. Later ones
        win.

    Raises:
      ConfigError: a flag is no `--config.<field>=<value>`, or there is no such item or
        section to hold the field.
    """
    before = {path: dict(section) for path, (_, section) in _with_class(tree).items()}
    set_fields(tree, given)
    for path, (kind, section) in _with_class(tree).items():
        old, key = before.get(path, {}), classes.CHOICE[kind]
        chosen = str(section.get(key))
        known = classes.keys(kind, chosen)
        if chosen == str(old.get(key)) or known is None:
            continue
        void = [
            name
            for name, value in old.items()
            if name not in known and name in section and section[name] is value
        ]
        for name in void:
            del section[name]
        if void:
            line = f"note: {path}: dropped {', '.join(void)}, which {chosen} does not"
            print(f"{line} have", file=sys.stderr)


def _with_class(tree: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Finds the sections that name a class: path -> (kind, section)."""
    evals = tree.get("evals")
    found = [(key, key, tree.get(key)) for key in SECTIONS]
    for name, section in (evals if isinstance(evals, dict) else {}).items():
        found.append((f"evals.{name}", "evaluator", section))
    return {path: (kind, it) for path, kind, it in found if isinstance(it, dict)}


def set_fields(tree: dict[str, Any], given: list[str] | Mapping[str, Any]) -> None:
    """Sets fields in the tree and drops none; arguments and errors as in `override`."""
    if isinstance(given, Mapping):
        for path, value in given.items():
            _set(tree, path, plain(value, path))
    else:
        for path, text in pairs(given):
            _set(tree, path, Text(text))


def pairs(flags: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of each `--config.path=text` or `--config.path text`.

    Raises:
      ConfigError: a flag is no `--config.<field>=<value>`.
    """
    rest = iter(flags)
    for flag in rest:
        if not flag.startswith("--config."):
            raise ConfigError(
                flag,
                "an unknown flag",
                "--config.<field>=<value> or a flag of the command",
            )
        path, equals, value = flag.removeprefix("--config.").partition("=")
        text = value if equals else next(rest, None)
        if text is None or (not equals and text.startswith("--")):
            raise ConfigError(flag, "no value", f"--config.{path}=<value>")
        if not re.fullmatch(r"[^.\[\]\s]+(\.[^.\[\]\s]+)*", path):
            raise ConfigError(
                flag, shown(path), "names joined by dots, such as data.sources.0.files"
            )
        yield path, text


def _set(tree: Any, path: str, value: Any) -> None:
    """Sets the field at a path; sections on the way that are absent are made."""
    keys = path.split(".")
    key: str | int
    for i, key in enumerate(keys):
        parent = ".".join(keys[:i])
        if isinstance(tree, list):
            if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(tree):
                span = f"an item from 0 to {len(tree) - 1}"
                raise ConfigError(parent, f"item {key}", span)
            key = int(key)
        elif not isinstance(tree, dict):
            raise ConfigError(path, f"a field within {parent}", f"a value for {parent}")
        if i == len(keys) - 1:
            tree[key] = value
            return
        if isinstance(tree, dict) and tree.get(key) is None:
            tree[key] = {}
        if isinstance(tree[key], Text):
            tree[key] = plain(schema.literal(tree[key]), path)
        tree = tree[key]
