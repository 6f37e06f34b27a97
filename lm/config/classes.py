"""The classes that the sections of a config choose: found, read, imported, built.

A section of a kind in NAMED gives the name of a file of that kind's folder, or a dotted
name of a module of the user's own. A section of a kind in FIXED has one class. Options
are read from the source with `ast` (`schema.read_class`); only `load_class` imports.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm.config import names, schema
from lm.config.schema import Field, no_such
from lm.errors import ConfigError

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]  # the folder of the package `lm`

# kind -> (folder of lm, the class that each of its files defines)
NAMED = {
    "model": ("models", "Model"),
    "objective": ("objectives", "Objective"),
    "tokenizer": ("tokenizers", "Tokenizer"),
    "data.sources": ("data.sources", "Source"),
    "evaluator": ("evaluators", "Evaluator"),
    "update": ("updates", "Update"),
    "adapter": ("adapters", "Adapter"),
}
# kind -> (module of lm, class)
FIXED = {
    "run": ("config.resolve", "Run"),
    "teacher": ("training.teaching", "Teacher"),
    "optim": ("training.optim", "Optim"),
    "data": ("data.pipeline", "Data"),
    "compute": ("models.base", "Compute"),
    "mesh": ("training.sharding", "MeshConfig"),
    "checkpoint": ("workdir.checkpoint", "Checkpoint"),
    "stop": ("training.guard", "Stop"),
    "init": ("workdir.checkpoint", "Init"),
    "log": ("workdir.writer", "Log"),
}
# The key of a section that chooses its class, and the key that holds sections itself.
CHOICE = dict.fromkeys(NAMED, "name") | {"evaluator": "evaluator"}
INNER = {"data": "sources", "evaluator": "data"}


def read_options(
    kind: str, section: Mapping, where: str, root: Path = ROOT
) -> dict[str, Field]:
    """Reads the options of a section, by its kind and the class that it chooses.

    Args:
      where: the path of the section, for the error.
      root: the folder of the package `lm`.

    Raises:
      ConfigError: there is no such class.
    """
    key = CHOICE.get(kind)
    name = section.get(key) if key else None
    module, class_name = _find_class(kind, name, f"{where}.{key}".strip("."), root)
    file = names.find_module(module, root)
    assert file is not None  # `_find_class` has found it.
    found = schema.read_class(file, class_name, root)
    return {key: field for key, field in found.items() if key != INNER.get(kind)}


def options(kind: str, name: str | None = None) -> dict[str, Field]:
    """Reads the options of the class that `load_class` imports."""
    return read_options(kind, {CHOICE[kind]: name} if kind in CHOICE else {}, kind)


def keys(kind: str, name: str) -> set[str] | None:
    """Lists the keys that a section of a class may have; None: no such class."""
    try:
        return {*options(kind, name), CHOICE[kind], INNER.get(kind, CHOICE[kind])}
    except ConfigError:
        return None


def known(kind: str, root: Path = ROOT) -> list[str]:
    """Lists the names that a kind of section has in `lm`, dotted ones aside."""
    folder, class_name = NAMED[kind]
    return names.modules(root.joinpath(*folder.split(".")), class_name)


def _find_class(kind: str, name: Any, where: str, root: Path) -> tuple[str, str]:
    """Finds (module, class) of a section: ("lm.models.transformer", "Model")."""
    if kind in FIXED:
        module, class_name = FIXED[kind]
        return f"{root.name}.{module}", class_name
    folder, class_name = NAMED[kind]
    if names.is_dotted(name):
        if names.find_module(name, root) is None:
            raise names.no_module(where, str(name), known(kind, root), root)
        return str(name), class_name
    if name not in known(kind, root):
        raise no_such(where, name, known(kind, root))
    return f"{root.name}.{folder}.{name}", class_name


def load_class(kind: str, name: str | None = None, root: Path = ROOT) -> type[Any]:
    """Imports the class of a section: load_class("model", "transformer").

    Args:
      kind: a key of NAMED, with a name, or of FIXED, without.
      name: a file of the kind's folder, or a dotted name such as experiments.x.model.

    Raises:
      ConfigError: there is no such file; those that exist are listed.
    """
    module, class_name = _find_class(kind, name, kind, root)
    return getattr(names.import_module(module, root), class_name)


def build(cls: type[T], section: Mapping[str, Any], **wiring: Any) -> T:
    """Builds an object from the fields of a section.

    The key that chose the class (`name`, of an evaluation `evaluator`) is left out; a
    group of options becomes an object of its own class.

    Args:
      wiring: fields of the class that no config sets; other parts of the run give them.
    """
    choices = {
        CHOICE[kind] for kind, (_, name) in NAMED.items() if name == cls.__name__
    }
    kept = {key: value for key, value in section.items() if key not in choices}
    assert is_dataclass(cls)
    for field in fields(cls):
        kind = field.type
        if field.name in kept and isinstance(kind, type) and is_dataclass(kind):
            kept[field.name] = build(kind, kept[field.name])
    return cls(**kept | wiring)
