"""Opens a Hugging Face directory, and checks that config.json and weights agree.

Nothing here needs jax. Of the weights only the headers are read.
"""

import functools
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import ConfigError
from lm.hf import hub
from lm.hf.families.base import Family, layers, sizes
from lm.hf.families.table import Sizes, Source, check, sources
from lm.hf.formats.files import is_file, read_json, refuse
from lm.hf.formats.tensors import open_tensors

FOLDER = Path(__file__).with_name("families")
# Parts that are loaded whatever the class, if their tensors are there. The other parts
# are loaded only where the class named in config.json has them.
OPTIONAL = ("pooler", "mlm", "nsp", "lm")
PREFIX = "hf:"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a directory.

    Attributes:
      directory: the path of the directory.
      file: the file of the weights.
      family: the family, whose tables are used.
      config: the content of config.json.
      model: config.model, complete.
      parts: the parts of the family's table that the checkpoint has, such as "pooler".
      sizes: axis of the tables -> size.
      sources: path of a parameter -> the tensors that it is made from.
      tensors: name -> tensor, a read-only view of the file.
      labels: the names of the classes of its head, in the order of their ids.
      notes: lines for the log on keys of config.json that have no effect here.
    """

    directory: Path
    file: Path
    family: Family
    config: Mapping[str, Any]
    model: Mapping[str, Any]
    parts: tuple[str, ...]
    sizes: Sizes
    sources: Mapping[str, Source]
    tensors: Mapping[str, np.ndarray]
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def dtypes(self) -> str:
        """Describes the tensors' dtypes; those of 16 bits become float32, exactly."""
        names = [tensor.dtype.name for tensor in self.tensors.values()]
        counts = (f"{names.count(n)} tensors {n}" for n in sorted({*names}))
        cast = "" if {*names} == {"float32"} else ", read as float32"
        return ", ".join(counts) + cast


def directory_of(source: str) -> Path:
    """Returns the directory of "hf:DIR" (see `is_hf`).

    Where DIR is no directory it is taken for a model of the hub and fetched (see
    lm.hf.hub).

    Raises:
      CheckpointError: DIR is neither a directory nor a model that can be fetched.
    """
    name = source.removeprefix(PREFIX)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    if hub.is_name(name):
        return hub.fetch(name)
    fix = "hf:org/model takes a model of the hub."
    refuse(source, "no such folder", "a folder with config.json and weights", fix)


@functools.cache
def families() -> Mapping[str, Family]:
    """Returns every family by its model type, from the files that define FAMILY."""
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    modules = (importlib.import_module(f"lm.hf.families.{name}") for name in names)
    found = (vars(module).get("FAMILY") for module in modules)
    return {family.model_type: family for family in found if family is not None}


def families_of(model_type: str) -> tuple[Family, ...]:
    """Returns the family of a model type, and its variants with other stacks."""
    family = families()[model_type]
    return (family, *family.others)


def read_config(directory: Path) -> tuple[Family, dict[str, Any], Path]:
    """Reads config.json, or the bert_config.json of Google's BERT.

    Returns:
      The family, the content of the file, and its path.

    Raises:
      CheckpointError: the file is absent or damaged, needs code of its own, or is of a
        family or class that is not in lm/hf/families.
    """
    path, kind = directory / "config.json", None
    if not is_file(path) and is_file(directory / "bert_config.json"):
        path, kind = directory / "bert_config.json", "bert"
    config = read_json(path)
    if "auto_map" in config:
        fix = "use a model that is computed without it."
        refuse(path, "auto_map: code of its own", "a config.json without code", fix)
    kind = kind or config.get("model_type")
    if not isinstance(kind, str) or kind not in families():
        found = f"model_type {str(kind)[:60]!r}"
        refuse(path, found, f"one of {', '.join(families())}", "use another model.")
    stacks = families_of(kind)
    name = _architecture(config, path, [n for f in stacks for n in f.architectures])
    family = next((f for f in stacks if name in f.architectures), stacks[0])
    return family, config, path


def open_checkpoint(directory: Path, missing: Iterable[str] = ()) -> Checkpoint:
    """Opens a directory and compares its tensors with what its config.json describes.

    Args:
      directory: holds config.json and weights.
      missing: regexes of the paths of parameters whose tensors may be absent.

    Raises:
      CheckpointError: a file is absent, damaged or unsafe; config.json has a value that
        this project cannot compute; tensors are missing, extra or of another shape.
    """
    family, config, path = read_config(directory)
    model = family.read(config, path)
    labels = _labels(config, path)
    (name,) = config.get("architectures") or [None]
    # The pooler of a bare model is optional: it may have been saved without.
    bare = name is None or name.endswith("Model")
    parts = () if bare else family.architectures[name]
    known = sizes(model, len(labels) or 2)
    file, tensors = open_tensors(directory)
    table = family.rules(model)
    tied = family.tied(model)
    known_names = {*(rule.name for rule in table), *tied}
    prefixes = (family.prefixes.get(name, family.prefix), family.prefix)
    tensors = _table_names(tensors, family, prefixes, known_names)
    tensors = _without_copies(tensors, tied, file)
    along = {rule.part for rule in table if rule.name in tensors} & {*OPTIONAL}
    used = [rule for rule in table if rule.part in {"", *parts} | along]
    try:
        family.check_parts(model, {rule.part for rule in used}, str(path))
    except ConfigError as error:
        refuse(path, error.found, error.expected, "use another model.")
    found = {
        path: source
        for path, source in sources(used, known, layers(model)).items()
        if not (
            any(re.fullmatch(pattern, path) for pattern in missing)
            and not any(name in tensors for name in source.names)
        )
    }
    wanted = {
        name: source.rule.tensor_shape(known)
        for source in found.values()
        for name in source.names
    }
    check(tensors, wanted, (), file)
    return Checkpoint(
        directory=directory,
        file=file,
        family=family,
        config=config,
        model=model,
        parts=tuple(sorted({rule.part for rule in used} - {""})),
        sizes=known,
        sources=found,
        tensors=tensors,
        labels=labels,
        notes=family.notes(config, model, path),
    )


def _architecture(config: dict[str, Any], path: Path, known: list[str]) -> str | None:
    """Returns the class that config.json names, or None."""
    names = config.get("architectures") or [None]
    if (
        not isinstance(names, list)
        or len(names) != 1
        or isinstance(names[0], list | dict)
    ):
        refuse(path, f"architectures {names!r}"[:120], "one")
    if names[0] not in (None, *known):
        found, expected = str(names[0])[:80], f"one of {', '.join(known)}"
        refuse(path, f"architecture {found!r}", expected, "use another model.")
    return names[0]


def _labels(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Returns the names of a head's classes, in the order of their ids."""
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 0)
        if type(count) is not int or not 0 <= count <= 10**6:
            refuse(path, f"num_labels {count!r}"[:80], "a number of classes")
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        return tuple(str(names[str(i)]) for i in range(len(names)))
    except (KeyError, TypeError):
        refuse(path, f"id2label {names!r}"[:120], "the names of 0, 1, ...")


def _table_names(
    tensors: Mapping[str, np.ndarray],
    family: Family,
    prefixes: tuple[str, ...],
    names: set[str],
) -> dict[str, np.ndarray]:
    """Returns the tensors under the names that the family's table has.

    The names in a file differ in three ways: bare models are saved without the family's
    prefix, some classes have another prefix, and the first BERTs call the parameters of
    a norm gamma and beta. Tensors that hold no parameter are left out.

    Args:
      prefixes: the possible prefixes, beside none.
      names: those of the table; `{i}` stands for any layer.
    """
    renamed: dict[str, np.ndarray] = {}
    begun = (p for p in prefixes if any(name.startswith(p) for name in tensors))
    prefix = next(begun, "")
    known = re.compile("|".join(map(_pattern, names)))
    for name, tensor in tensors.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        own = family.prefix + new.removeprefix(prefix)
        if new.startswith(prefix) and known.fullmatch(own):
            new = own
        if not re.fullmatch(family.unused, new):
            renamed[new if new not in renamed else name] = tensor
    return renamed


def _pattern(name: str) -> str:
    return re.escape(name).replace(re.escape("{i}"), r"\d+")


def _without_copies(
    tensors: dict[str, np.ndarray], tied: Mapping[str, str], file: Path
) -> dict[str, np.ndarray]:
    """Returns the tensors without those that repeat another one.

    Raises:
      CheckpointError: two tied tensors differ.
    """
    for name, other in tied.items():
        if name not in tensors:
            continue
        again = tensors.pop(name)
        first = tensors.setdefault(other, again)
        if first is not again and not _equal(first, again):
            fix = "set tie_word_embeddings in config.json as the model was trained."
            refuse(
                f"{file}: {name}", f"other numbers than {other}", "a copy of it", fix
            )
    return tensors


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b))
