"""Resolves a config: adds every default, checks types and rules; compares two configs.

The options of a section are the fields of the dataclass that it chooses. They are read
from the source and not imported (`lm/config/schema.py`), so a mistake is reported
before jax is loaded. What config files and overrides look like: `lm/config/files.py`,
`lm/config/overrides.py`.
"""

import json
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import jobs, names, schema
from lm.config.classes import CHOICE as CHOICE
from lm.config.classes import FIXED as FIXED
from lm.config.classes import NAMED as NAMED
from lm.config.classes import ROOT as ROOT
from lm.config.classes import build as build
from lm.config.classes import known as known
from lm.config.classes import load_class as load_class
from lm.config.classes import options as options
from lm.config.classes import read_options as read_options
from lm.config.durations import is_time as is_time
from lm.config.durations import to_steps as to_steps
from lm.config.files import default_workdir as default_workdir
from lm.config.files import describe_files as describe_files
from lm.config.files import parse_arg as parse_arg
from lm.config.files import plain as plain
from lm.config.files import read_file
from lm.config.overrides import override as override
from lm.config.rules import check_rules
from lm.config.schema import REQUIRED, Text, near, shown
from lm.config.schema import no_such as no_such
from lm.errors import ConfigError, Refusal
from lm.host import files

# Steps, or a text such as "10%", "3 epochs", "5000 examples", "1e6 tokens".
Duration = int | str

# The sections of the top level, in the order in which config.json has them.
SECTIONS = (
    *("model", "adapter", "objective", "teacher", "tokenizer", "optim", "update"),
    *("data", "compute", "mesh", "checkpoint", "evals", "stop", "init", "log"),
)
# The class of a section that chooses none.
DEFAULT_NAMES = {"update": {"name": "plain"}, "adapter": {"name": "none"}}

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
      job: the name of a module of lm that does the run, "train" or "fit" (jobs.py).
      seed: of every random draw.
      batch_size: examples of one optimiser step, over all devices.
      seq_len: positions of one example.
      grad_accum: micro-batches of one step.
      steps: how long to train; for a fit, passes over the data.
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
    """Reads a config, overrides its fields, resolves and checks it.

    Args:
      config: `FILE[:ARG]`, the path of a config file and its argument; or the tree that
        such a file returns.
      overrides: `--config.a.b=value` flags as the shell gave them, or values by dotted
        path; later ones win.
      root: the folder of the package `lm`.
      fill: completes the tree before it is resolved (`lm.hf.source.with_shape`).

    Raises:
      ConfigError: the first mistake found, naming the file or the field.
    """
    tree = read_file(config) if isinstance(config, str) else plain(config, "config")
    override(tree, overrides)
    return resolve(tree if fill is None else fill(tree), root)


def resolve(tree: dict[str, Any], root: Path = ROOT) -> Config:
    """Adds every default to a tree, and checks types and rules.

    `model.preset` is expanded. The `data` of an evaluation inherit all fields but
    `sources` from the run's `data`. Where `init.source` or `teacher.source` brings the
    tokenizer, it is None.

    Raises:
      ConfigError: the first mistake found, naming the field.
    """
    tree = _shape(tree, root)
    job = tree.get("job", DEFAULT_JOB)
    unused = jobs.read(job, root)["unused"]
    out: dict[str, Any] = {}
    for where, kind, given in _sections(tree, root):
        for key in names.CODE_KEYS:
            names.check_trusted(given.get(key), _join(where, key))
        fields = read_options(kind, given, where, root)
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
    config = _freeze(out | ({"tokenizer": None} if tree["tokenizer"] is None else {}))
    check_rules(config)
    return config


def _shape(tree: dict[str, Any], root: Path) -> dict[str, Any]:
    """Makes every section a dict, and expands the preset.

    Raises:
      ConfigError: a section is something else, or an unknown preset; an evaluation has
        no evaluator, as when its name is mistyped in an override.
    """
    tree = tree | {key: _as_dict(tree.get(key), key) for key in SECTIONS}
    preset = tree["model"].pop("preset", None)
    if preset is not None:
        presets = runpy.run_path(str(root / "models" / "presets.py"))["PRESETS"]
        if not isinstance(preset, str) or preset not in presets:
            raise no_such("model.preset", preset, presets)
        tree["model"] = _merge(presets[str(preset)], tree["model"])
    if not tree["tokenizer"]:
        if all(tree[key].get("source") is None for key in ("init", "teacher")):
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
        if given.get("evaluator") is None:
            guess = near(name, [each for each in tree["evals"] if each != name])
            raise ConfigError(
                f"{where}.evaluator",
                "nothing",
                f"one of {', '.join(known('evaluator', root))}",
                f"did you mean evals.{guess}?" if guess else f"set {where}.evaluator.",
            )
        data = _as_dict(given.get("data"), f"{where}.data")
        tree["evals"][name] = given | {"data": _shape_data(data, f"{where}.data")}
    return tree


def _merge(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two trees; where both have a field, `given` wins."""
    out = dict(preset) | dict(given)
    for key in preset.keys() & given.keys():
        if isinstance(preset[key], Mapping) and isinstance(given[key], Mapping):
            out[key] = _merge(preset[key], given[key])
    return out


def _shape_data(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Makes `sources` a list of dicts, in a section of data."""
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
    """Reads a section that may be a text of the command line; None is an empty one."""
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
            yield key, key, DEFAULT_NAMES.get(key, {}) | tree[key]
    yield from data("data", tree["data"])
    for name, given in tree["evals"].items():
        where = f"evals.{name}"
        yield where, "evaluator", {k: v for k, v in given.items() if k != "data"}
        yield from data(f"{where}.data", given["data"])


def _own(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the fields of the top level that are no sections."""
    return {key: value for key, value in tree.items() if key not in SECTIONS}


def _put(out: dict[str, Any], where: str, section: dict[str, Any]) -> None:
    """Puts a section at its path; items of `sources` are appended in their order."""
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


def _freeze(value: Any) -> Any:
    """Copies a tree: every dict becomes a Config, every list a tuple."""
    if isinstance(value, dict):
        return Config({key: _freeze(item) for key, item in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def _unknown(
    key: str, where: str, fields: Mapping, tree: dict, root: Path
) -> ConfigError:
    """Makes the error for an unknown field; looks for a similar one everywhere."""
    known = [*fields, *(() if where else SECTIONS)]
    guess = near(key, known)
    if guess is None:
        others = {
            name: _join(path, name)
            for path, kind, given in _sections(tree, root)
            for name in read_options(kind, given, path, root)
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


def changes(
    old: Mapping[str, Any], new: Config, root: Path = ROOT
) -> list[tuple[str, Any, Any, bool]]:
    """Lists the differences of two resolved configs: (path, old, new, changeable).

    A field that one of them lacks counts as None; a field that was added to the code
    after `old` was written counts as its default. A field may change on resume
    (`changeable`) where CHANGEABLE beside its class names it, or where its evaluation
    is added or removed as a whole.
    """
    evals = old["evals"] if isinstance(old.get("evals"), Mapping) else {}
    free = {f"evals.{name}" for name in {*evals} ^ {*new["evals"]}}
    defaults: dict[str, Any] = {}
    for where, kind, given in _sections(new, root):
        fields = read_options(kind, given, where, root)
        free |= {_join(where, name) for name in fields if fields[name].changeable}
        defaults |= {_join(where, name): f.default for name, f in fields.items()}
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for path in after.keys() - before.keys():
        if path in defaults and defaults[path] is not REQUIRED:
            before[path] = _freeze(defaults[path])
    out = []
    for path in {**after, **before}:
        pair = before.get(path), after.get(path)
        if pair[0] != pair[1]:
            parts = path.split(".")
            parents = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
            out.append((path, *pair, not free.isdisjoint(parents)))
    return out


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every field, through tuples of dicts too."""
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
    """Writes the text of a `config.json`, from which `from_json` makes an equal one."""
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def from_json(text: str, where: str = "config.json") -> Config:
    """Parses the text of a `config.json`; neither completes nor checks it.

    Args:
      where: what the text came from, for the error.

    Raises:
      ConfigError: it is no JSON object.
    """
    return _freeze(files.parse_json(text, where, {}, ConfigError, KEPT))


def read_json(file: Path, error: type[Refusal] = ConfigError) -> Config:
    """Reads a `config.json`; neither completes nor checks it.

    Raises:
      Refusal: of class `error`: it is no regular file, or no JSON object.
    """
    return _freeze(files.read_json(file, {}, error=error, expected=KEPT))


def of_run(
    workdir: Path, overrides: list[str] | None = None, evals: Any = None
) -> Config:
    """Reads `config.json` of a workdir, overrides its fields, and resolves it again.

    A workdir may be somebody else's. So code that its config.json names by a dotted
    name is refused, unless `--allow-code` allows it (see `lm.config.names`).

    Args:
      evals: replaces the evaluations of the run, before the overrides.

    Raises:
      ConfigError: the folder is no workdir, names code, or an override is wrong.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        found = "no config.json in it" if file.parent.is_dir() else "no such folder"
        raise ConfigError(str(workdir), found, "the workdir of a run")
    tree = plain(read_json(file), str(file))
    tree = names.mark_untrusted(tree, ROOT)
    if evals is not None:
        tree["evals"] = evals
    override(tree, overrides or [])
    return resolve(tree)
