"""The config: what was asked for made one complete tree, and checked.

The sections are filled from the dataclasses that they name, which are read and not
imported (`lm/config/schema.py`), so that a mistake is answered before jax is loaded.
How files, arguments and overrides are written: `lm/config/files.py`.
"""

import json
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm.config import jobs, leftovers, names, schema
from lm.config.durations import is_time as is_time
from lm.config.durations import to_steps as to_steps
from lm.config.files import default_workdir as default_workdir
from lm.config.files import describe_files as describe_files
from lm.config.files import parse_arg as parse_arg
from lm.config.files import plain as plain
from lm.config.files import read_file
from lm.config.rules import check_rules
from lm.config.schema import REQUIRED, Field, Text, near, shown
from lm.config.schema import no_such as no_such
from lm.errors import ConfigError, Refusal
from lm.host import files

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]

# Steps, or a text such as "10%", "3 epochs", "5000 examples", "1e6 tokens".
Duration = int | str

# Kinds of section whose name is a file of a folder, with the class that it defines; and
# kinds that have one class.
NAMED = {
    "model": ("models", "Model"),
    "objective": ("objectives", "Objective"),
    "tokenizer": ("tokenizers", "Tokenizer"),
    "data.sources": ("data.sources", "Source"),
    "evaluator": ("evaluators", "Evaluator"),
    "update": ("updates", "Update"),
}
FIXED = {
    "run": ("config.resolve", "Run"),
    "optim": ("training.optim", "Optim"),
    "data": ("data.pipeline", "Data"),
    "compute": ("models.base", "Compute"),
    "mesh": ("training.sharding", "MeshConfig"),
    "checkpoint": ("workdir.checkpoint", "Checkpoint"),
    "stop": ("training.guard", "Stop"),
    "init": ("workdir.checkpoint", "Init"),
    "log": ("workdir.writer", "Log"),
}
# The top level, in the order in which it is written, after the fields of `Run`.
SECTIONS = (
    *("model", "objective", "tokenizer", "optim", "update", "data", "compute", "mesh"),
    *("checkpoint", "evals", "stop", "init", "log"),
)
# What a section is called where it does not say so.
NAMES = {"update": {"name": "plain"}}
# The key that names the class; and the key of a section that holds sections itself.
CHOICE = dict.fromkeys(NAMED, "name") | {"evaluator": "evaluator"}
INNER = {"data": "sources", "evaluator": "data"}

BOUNDS = {
    "seed": "[0, 4294967295]",
    "batch_size": "[1, 16777216]",
    "seq_len": "[1, 16777216]",
    "grad_accum": "[1, 65536]",
    "steps": "(0, inf)",
}
CHANGEABLE = ("steps",)
DEFAULT_JOB = "train"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The fields of the top level.

    Attributes:
      job: what is done: the name of a module of lm, "train" or "fit" (see jobs.py).
      batch_size: examples in one optimiser step, over all devices.
      seq_len: places of one example.
      grad_accum: into how many micro-batches a step is cut.
      steps: how long to train; of a fit, how many passes over the data.
    """

    job: str = DEFAULT_JOB
    seed: int = 0
    batch_size: int
    seq_len: int
    grad_accum: int = 1
    steps: Duration


class Config(dict):
    """A resolved config or a section of it: a dict whose keys are attributes too."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no field {key!r} among {list(self)}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a resolved config is not changed")


def load(
    config: str | Mapping[str, Any],
    overrides: list[str] | Mapping[str, Any],
    root: Path = ROOT,
    fill: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Config:
    """The complete, checked config of `FILE[:ARG]` and what overrides its fields.

    Args:
      config: the path of a config file, and its argument after a colon; or the tree
        that such a file gives.
      overrides: `--config.a.b=value` flags as the shell gave them, or values by dotted
        path; later ones win.
      root: the folder of the package `lm`.
      fill: adds to the tree of what was given (lm.hf.source.with_shape).

    Raises:
      ConfigError: the first mistake found, naming the file or the field.
    """
    tree = read_file(config) if isinstance(config, str) else plain(config, "config")
    leftovers.override(tree, overrides, _names)
    return resolve(tree if fill is None else fill(tree), root)


def resolve(tree: dict[str, Any], root: Path = ROOT) -> Config:
    """A tree of what was given -> the same with every default, types and rules checked.

    `preset` is expanded. The `data` of an evaluation take from the run's `data` what
    they do not say, but for the sources. A tokenizer may be left to `init.source`, and
    is then None.
    """
    tree = _shape(tree, root)
    job = tree.get("job", DEFAULT_JOB)
    unused = jobs.read(job, root)["unused"]
    out: dict[str, Any] = {}
    for where, kind, given in _sections(tree, root):
        for key in names.CODE_KEYS:
            names.check_trusted(given.get(key), _join(where, key))
        fields = _fields(kind, given, where, root)
        choice = CHOICE.get(kind)
        section = {choice: str(given[choice])} if choice else {}
        unknown = given.keys() - fields.keys() - section.keys()
        if unknown:
            raise _unknown(min(unknown), where, fields, tree, root)
        common = out["data"] if kind == "data" and where != "data" else {}
        for name, field in fields.items():
            path = _join(where, name)
            value = given.get(name, common.get(name, field.default))
            if value is REQUIRED:
                wanted = schema.describe(field.type, field.bounds)
                raise ConfigError(path, "nothing", wanted, f"set {path} in the config.")
            section[name] = schema.check(field, value, path)
            if path in unused:
                jobs.check_unused(path, section[name], field.default, job)
        _put(out, where, section)
    out = {key: out.get(key, {}) for key in (*_own(out), *SECTIONS)}
    config = _frozen(out | ({"tokenizer": None} if tree["tokenizer"] is None else {}))
    check_rules(config)
    return config


def _shape(tree: dict[str, Any], root: Path) -> dict[str, Any]:
    """The tree with every section there and a dict, and the preset expanded."""
    tree = tree | {key: _as_dict(tree.get(key), key) for key in SECTIONS}
    preset = tree["model"].pop("preset", None)
    if preset is not None:
        presets = runpy.run_path(str(root / "models" / "presets.py"))["PRESETS"]
        if not isinstance(preset, str) or preset not in presets:
            raise no_such("model.preset", preset, presets)
        tree["model"] = _merged(presets[str(preset)], tree["model"])
    if not tree["tokenizer"]:
        if tree["init"].get("source") is None:
            fix = "set tokenizer.name=hf, or init.source=<workdir of another run>."
            raise ConfigError("tokenizer", "nothing", "a tokenizer, or a run's", fix)
        tree["tokenizer"] = None
    tree["data"] = _shape_data(tree["data"], "data")
    for name, given in tree["evals"].items():
        if not re.fullmatch(r"\w[\w-]*", name) or name in ("train", "optim"):
            rule = "names of letters, digits, _ and -, other than train and optim"
            raise ConfigError("evals", shown(name), rule)
        where = f"evals.{name}"
        given = _as_dict(given, where)
        data = _as_dict(given.get("data"), f"{where}.data")
        tree["evals"][name] = given | {"data": _shape_data(data, f"{where}.data")}
    return tree


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What `above` says, and below it, in groups of options too, what `below` says."""
    out = dict(below) | dict(above)
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            out[key] = _merged(below[key], above[key])
    return out


def _shape_data(data: dict[str, Any], where: str) -> dict[str, Any]:
    where = f"{where}.sources"
    sources = data.get("sources")
    if isinstance(sources, Text):
        sources = plain(schema.literal(sources), where)
    if not isinstance(sources, list) or not sources:
        fix = 'for example [{"name": "builtin"}].'
        raise ConfigError(where, shown(sources), "a list of one source or more", fix)
    items = [_as_dict(source, f"{where}.{i}") for i, source in enumerate(sources)]
    return data | {"sources": items}


def _as_dict(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, Text):
        value = plain(schema.literal(value), where)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(where, shown(value), "a section: a dict of fields")
    return dict(value or {})


def _sections(
    tree: dict[str, Any], root: Path
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (path, kind, fields given) of each section of a tree, parents first.

    Raises:
      ConfigError: a section that the job does not use has fields.
    """

    def data(where: str, given: dict) -> Iterator[tuple[str, str, dict[str, Any]]]:
        yield where, "data", {k: v for k, v in given.items() if k != "sources"}
        for i, source in enumerate(given["sources"]):
            yield f"{where}.sources.{i}", "data.sources", source

    yield "", "run", _own(tree)
    job = tree.get("job", DEFAULT_JOB)
    unused = jobs.read(job, root)["unused"]
    for key in unused:
        if key in SECTIONS:
            jobs.check_unused(key, tree.get(key, {}), {}, job)
    for key in SECTIONS:
        if key not in ("data", "evals", *unused) and tree[key] is not None:
            yield key, key, NAMES.get(key, {}) | tree[key]
    yield from data("data", tree["data"])
    for name, given in tree["evals"].items():
        where = f"evals.{name}"
        yield where, "evaluator", {k: v for k, v in given.items() if k != "data"}
        yield from data(f"{where}.data", given["data"])


def _own(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the top level itself."""
    return {key: value for key, value in tree.items() if key not in SECTIONS}


def _put(out: dict[str, Any], where: str, section: dict[str, Any]) -> None:
    """Puts a section at its path; the items of `sources` come in their order."""
    if not where:
        out.update(section)
        return
    *parents, last = where.split(".")
    for key in parents:
        out = out.setdefault(key, [] if key == "sources" else {})
    if isinstance(out, list):
        out.append(section)
    else:
        out[last] = section


def _frozen(value: Any) -> Any:
    """Dicts as Config and lists as tuples, all the way down."""
    if isinstance(value, dict):
        return Config({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _fields(kind: str, given: Mapping, where: str, root: Path) -> dict[str, Field]:
    """The options of a section, by its kind and the name that it gives."""
    choice = CHOICE.get(kind)
    name = given.get(choice) if choice else None
    module, class_name = _class_place(kind, name, _join(where, choice or ""), root)
    fields = schema.read_class(schema.find_module(module, root), class_name, root)
    return {key: field for key, field in fields.items() if key != INNER.get(kind)}


def options(kind: str, name: str | None = None) -> dict[str, Field]:
    """Reads the options of the class that `load_class` finds, without importing it."""
    return _fields(kind, {CHOICE[kind]: name} if kind in CHOICE else {}, kind, ROOT)


def _names(kind: str, name: str) -> set[str] | None:
    """The keys that a section of a class may have; None: there is no such class."""
    try:
        return {*options(kind, name), CHOICE[kind], INNER.get(kind, CHOICE[kind])}
    except ConfigError:
        return None


def known(kind: str) -> list[str]:
    """Lists the names that a kind of section has in `lm`, dotted ones aside."""
    folder, class_name = NAMED[kind]
    return names.modules(ROOT.joinpath(*folder.split(".")), class_name)


def _class_place(kind: str, name: Any, where: str, root: Path) -> tuple[str, str]:
    """The (module, class) of a section, such as ("lm.models.transformer", "Model")."""
    if kind in FIXED:
        module, class_name = FIXED[kind]
        return f"{root.name}.{module}", class_name
    folder, class_name = NAMED[kind]
    known = names.modules(root.joinpath(*folder.split(".")), class_name)
    if names.is_dotted(name):
        if names.find_module(name, root) is None:
            raise names.no_module(where, str(name), known, root)
        return str(name), class_name
    if name not in known:
        raise no_such(where, name, known)
    return f"{root.name}.{folder}.{name}", class_name


def _unknown(
    key: str, where: str, fields: Mapping, tree: dict, root: Path
) -> ConfigError:
    """The error for a field that no class has; looks for it in other sections too."""
    known = [*fields, *(() if where else SECTIONS)]
    guess = near(key, known)
    if guess is None:
        others = {
            name: _join(path, name)
            for path, kind, given in _sections(tree, root)
            for name in _fields(kind, given, path, root)
        }
        guess = others.get(near(key, others) or "")
    else:
        guess = _join(where, guess)
    return ConfigError(
        _join(where, key if key.isprintable() else shown(key)),
        "an unknown field",
        f"one of {', '.join(known)}" if known else "no field here",
        f"did you mean {guess}?" if guess else None,
    )


def _join(where: str, key: str) -> str:
    return f"{where}.{key}".strip(".")


def load_class(kind: str, name: str | None = None, root: Path = ROOT) -> type[Any]:
    """The class of a section, imported: load_class("model", "transformer").

    Args:
      kind: a key of NAMED, with a name, or of FIXED, without.
      name: a file of the kind's folder, or a dotted name such as experiments.x.model.

    Raises:
      ConfigError: no such file; those that exist are listed.
    """
    module, class_name = _class_place(kind, name, kind, root)
    return getattr(names.import_module(module, root), class_name)


def build(cls: type[T], section: Mapping[str, Any], **wiring: Any) -> T:
    """An object of a section's class: its fields, and what other parts give it.

    The key that chose the class (`name`, of an evaluation `evaluator`) is left out; a
    group of options becomes an object of its own class.
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


def changes(
    old: Mapping[str, Any], new: Config, root: Path = ROOT
) -> list[tuple[str, Any, Any, bool]]:
    """What differs between two resolved configs: (path, old, new, changeable).

    A field that one of them lacks is None there; one that is newer than the old config
    had its default. All fields are frozen but those of their class's CHANGEABLE, and
    evaluations that came or went as a whole.
    """
    evals = old["evals"] if isinstance(old.get("evals"), Mapping) else {}
    free = {f"evals.{name}" for name in {*evals} ^ {*new["evals"]}}
    defaults: dict[str, Any] = {}
    for where, kind, given in _sections(new, root):
        fields = _fields(kind, given, where, root)
        free |= {_join(where, name) for name in fields if fields[name].changeable}
        defaults |= {_join(where, name): f.default for name, f in fields.items()}
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for path in after.keys() - before.keys():
        if path in defaults and defaults[path] is not REQUIRED:
            before[path] = _frozen(defaults[path])
    out = []
    for path in {**after, **before}:
        pair = before.get(path), after.get(path)
        if pair[0] != pair[1]:
            parts = path.split(".")
            parents = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
            out.append((path, *pair, not free.isdisjoint(parents)))
    return out


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every field; the items of a tuple of dicts one by one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, _join(path, key))
    elif isinstance(value, tuple) and value and isinstance(value[0], Mapping):
        for i, item in enumerate(value):
            yield from _leaves(item, _join(path, str(i)))
    else:
        yield path, value


KEPT = "the JSON of a config"


def to_json(config: Config) -> str:
    """The text of `config.json`; `from_json` gives back an equal config."""
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def from_json(text: str, where: str = "config.json") -> Config:
    """Parses the text of a `config.json`, as it was written: not checked again.

    Raises:
      ConfigError: the text, which came from `where`, is no JSON object.
    """
    return _frozen(files.parse_json(text, where, {}, ConfigError, KEPT))


def read_json(file: Path, error: type[Refusal] = ConfigError) -> Config:
    """Reads a `config.json`, as it was written: not checked again.

    Raises:
      Refusal: of class `error`: it is no regular file or no JSON object.
    """
    return _frozen(files.read_json(file, {}, error=error, expected=KEPT))


def of_run(workdir: Path, overrides: list[str] | None = None) -> Config:
    """Reads the config that a run has kept, with overrides, and checks it again.

    Its dotted names count only where `--allow-code` names them: the workdir may be
    somebody else's (see `lm.config.names`).

    Raises:
      ConfigError: the folder is not a run's, it names code, or an override is wrong.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        found = "no config.json in it" if file.parent.is_dir() else "no such folder"
        raise ConfigError(str(workdir), found, "the workdir of a run")
    tree = plain(read_json(file), str(file))
    tree = names.mark_foreign(tree, ROOT)
    leftovers.override(tree, overrides or [], _names)
    return resolve(tree)
