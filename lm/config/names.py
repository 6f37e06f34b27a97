"""Finds the files, modules and functions that a config names, without importing them.

A name without a dot is a file of a folder of `lm`. A dotted name is a module of the
user's own and is found by Python's own rule: in the current folder, on PYTHONPATH, or
installed. Modules of `lm` come from `lm` alone, whatever the current folder holds.

A dotted name leads to code that runs. It is trusted where the user wrote it, in a
config file or on the command line, but not where the `config.json` of a workdir holds
it, since that may be somebody else's. `Untrusted` marks it there, and `check_trusted`
refuses it unless `--allow-code` names it.
"""

import ast
import importlib
import re
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from lm.errors import ConfigError

CODE_KEYS = ("name", "evaluator", "job")  # the keys of a config that name modules
_allowed: frozenset[str] = frozenset()


class Untrusted(str):
    """A dotted name that the config.json of a workdir holds, not the user's config."""


def is_dotted(name: Any) -> bool:
    """Returns whether a name could be that of a module within a package."""
    return (
        isinstance(name, str)
        and "." in name
        and all(part.isidentifier() for part in name.split("."))
    )


def allow_code(names: str) -> None:
    """Sets which untrusted names may run in this process: "a.b,c.d".

    Raises:
      ConfigError: one of them is no dotted name of a module.
    """
    global _allowed
    given = [name for name in names.split(",") if name]
    for name in given:
        if not is_dotted(name):
            raise ConfigError(
                f"--allow-code={names}", repr(name), "dotted names such as mine.model"
            )
    _allowed = frozenset(given)


def mark_untrusted(value: Any, root: Path) -> Any:
    """Copies the tree of a config.json, and marks its dotted names outside of `lm`."""
    if isinstance(value, list):
        return [mark_untrusted(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: mark_untrusted(item, root) for key, item in value.items()}
    for key in CODE_KEYS:
        name = out.get(key)
        if is_dotted(name) and not str(name).startswith(f"{root.name}."):
            out[key] = Untrusted(name)
    return out


def check_trusted(name: Any, where: str) -> None:
    """Refuses an untrusted name that `allow_code` does not allow.

    Raises:
      ConfigError: names the flag that would allow it.
    """
    if isinstance(name, Untrusted) and name not in _allowed:
        raise ConfigError(
            where,
            f"{str(name)!r}, code that the run's own config.json names",
            "a module of lm: code that a workdir names does not run unasked",
            f"read that code, then add --allow-code={name} if you trust it.",
        )


def find_module(dotted: str, root: Path) -> Path | None:
    """Finds the file of `lm.run` or `experiments.sketch.model`, importing nothing.

    Packages on the way are not imported either: a check runs no code.

    Args:
      root: the folder of the package `lm`.

    Returns:
      The file; None if there is none.
    """
    parts = dotted.split(".")
    if parts[0] == root.name:
        file = root.parent.joinpath(*parts).with_suffix(".py")
        return file if file.is_file() else None
    spec = _find(parts, root)
    origin = spec.origin if spec and spec.has_location else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _find(parts: list[str], root: Path) -> ModuleSpec | None:
    """Finds a module as `import` does, on the path that `import_module` uses."""
    if not all(part.isidentifier() for part in parts):
        return None
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(parts[0], _path(root))
    for finder in sys.meta_path:  # Editable installations bring finders of their own.
        if spec is None and finder is not PathFinder and hasattr(finder, "find_spec"):
            spec = finder.find_spec(parts[0], None)
    for part in parts[1:]:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # The full name would make the finder import the parent package.
        spec = PathFinder.find_spec(part, [*spec.submodule_search_locations])
    return spec


def _path(root: Path) -> list[str]:
    """Lists sys.path, then the current folder and the one that holds lm.

    Python puts neither on the path of a console script.
    """
    return list(dict.fromkeys([*sys.path, str(Path.cwd()), str(root.parent)]))


def import_module(dotted: str, root: Path) -> ModuleType:
    """Imports the module that `find_module` finds.

    Raises:
      ConfigError: a module of the user's own fails; names its line.
    """
    if dotted.startswith(f"{root.name}."):
        return importlib.import_module(dotted)
    sys.path += [place for place in _path(root) if place not in sys.path]
    try:
        return importlib.import_module(dotted)
    except (Exception, SystemExit) as error:
        from lm.config.files import user_error

        file = find_module(dotted, root)
        raise user_error(
            error, file or Path(dotted), "a module that can be imported"
        ) from error


def no_module(where: str, dotted: str, known: Iterable[str], root: Path) -> ConfigError:
    """Makes the error for a dotted name of no module; lists where it was looked up.

    Args:
      known: the names without a dot that exist.
    """
    parts = dotted.split(".")
    if parts[0] == root.name:
        looked = [str(root)]
    else:
        own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
        own |= {str(Path(place) / "lib-dynload") for place in own}
        places = [str(Path(place).absolute()) for place in _path(root)]
        looked = [p for p in places if p not in own and Path(p).is_dir()]
    heads = [parts[:n] for n in range(len(parts) - 1, 0, -1)]
    found = next((head for head in heads if _find(head, root)), None)
    there = f" ({'.'.join(found)} is there, without it)" if found else ""
    return ConfigError(
        where,
        f"{dotted!r}",
        f"one of {', '.join(known)}, or a module in the current folder, on PYTHONPATH "
        f"or installed{there}; looked in {', '.join(looked)}",
        "check the name, or add the folder that holds its package to PYTHONPATH.",
    )


# ── Lists of names that are made from the source ────────────────────────────────────


def modules(folder: Path, name: str) -> list[str]:
    """Lists the files of a folder that define a class or value; `base` aside."""
    pattern = re.compile(rf"^(class )?{name}\b", re.MULTILINE)
    return sorted(
        file.stem
        for file in folder.glob("*.py")
        if file.stem != "base" and pattern.search(file.read_text(encoding="utf-8"))
    )


def words(place: str, root: Path) -> tuple[str, ...]:
    """Lists the values of an option that are names of functions or files.

    Args:
      place: "training.schedules:*" for the public functions of a module, in source
        order; "ops.attention.*:LIMITS" for the files of a folder that define LIMITS,
        in alphabetical order. Several places may be separated by blanks.
      root: the folder of the package `lm`.

    Raises:
      ConfigError: there is no such module or folder.
    """
    if " " in place:
        return tuple(word for each in place.split() for word in words(each, root))
    where, _, wanted = place.partition(":")
    if wanted == "*":
        file = root.joinpath(*where.split(".")).with_suffix(".py")
        if not file.is_file():
            raise ConfigError(f"WORDS {place!r}", f"no file {file}", "a module of lm")
        return tuple(name for name in _defined(file) if not name.startswith("_"))
    folder = root.joinpath(*where.removesuffix(".*").split("."))
    if not where.endswith(".*") or not folder.is_dir():
        raise ConfigError(f"WORDS {place!r}", f"no folder {folder}", "a room of lm")
    files = sorted(file for file in folder.glob("*.py") if file.stem != "__init__")
    return tuple(file.stem for file in files if wanted in _defined(file, values=True))


@cache
def _defined(file: Path, values: bool = False) -> tuple[str, ...]:
    """Lists the functions of a file; with `values` its classes and variables too."""
    names = []
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(
            node, (ast.FunctionDef, ast.ClassDef) if values else ast.FunctionDef
        ):
            names.append(node.name)
        elif values and isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif values and isinstance(node, ast.AnnAssign):
            names += [node.target.id] if isinstance(node.target, ast.Name) else []
    return tuple(names)
