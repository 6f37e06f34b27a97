"""The second stage of the check: whether the parts of a config fit together.

The first stage checks types, bounds and general rules and imports no class
(`rules.py`). This stage builds the model, the objective and the evaluators without data
and compares the abilities that they require and offer. Both come before the workdir is
touched.
"""

import ast
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lm.config import classes, jobs, schema
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import ConfigError, Rule, require
from lm.models.base import ABILITIES
from lm.ops.attention.limits import Requirements, check_implementation

Open = Callable[[Config], tuple[Any, Any]]


def check(
    config: Config, build: Open, needs: Iterable[str] = (), asker: str = ""
) -> None:
    """Checks that the parts of a config fit together.

    Args:
      build: config -> (model, objective), neither with data or parameters.
      needs: abilities (words of `can`) that a command requires of the model or the
        objective.
      asker: the name of that command, for the error.

    Raises:
      ConfigError: the first rule that does not hold.
    """
    model, objective = build(config)
    job = jobs.read(config.job, configs.ROOT)
    missing = sorted({*job["needs"]} - model.can)
    if missing:
        can = ABILITIES.get(missing[0], missing[0])
        found = f"{config.model.name!r}, which cannot {can} ({missing[0]})"
        raise ConfigError("model.name", found, f"one that can, for job {config.job}")
    if lacks := _lacks(config, model, objective):
        raise _misfit(config, build, lacks, model)
    for word in sorted({*needs} - model.can - objective.can):
        section = "model" if word in ABILITIES else "objective"
        lack = f"cannot {ABILITIES[word]}" if word in ABILITIES else "does not offer it"
        raise ConfigError(
            f"{section}.name",
            f"{config[section].name!r}, which {lack} ({word})",
            f"one that does, for {asker}",
        )
    _check_kernel(config, model, objective)
    require(_general(config, model, objective))
    require(objective.rules(config))
    yielded = dict(_check_evaluations(config, model, objective))
    require(_metric_rules(config, yielded))


def build_class(
    kind: str, section: Mapping[str, Any], where: str, **wiring: Any
) -> Any:
    """Builds the object whose class a section names.

    Args:
      kind: "model", "objective", "evaluator", "update" or "adapter".
      where: the path of the section, for the error.
      wiring: arguments of the class that no config sets.

    Raises:
      ConfigError: the class lacks a required method, or has a field of the name of one.
    """
    choice = classes.CHOICE[kind]
    cls = configs.load_class(kind, section[choice])
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        expected = f"every method of lm/{kind}s/base.py"
        where, found = f"{where}.{choice}", f"{cls.__module__} without"
        raise ConfigError(where, f"{found} {', '.join(missing)}", expected)
    for field in dataclasses.fields(cls):
        for parent in cls.__mro__[1:]:
            hidden = vars(parent).get(field.name)
            if callable(hidden) or isinstance(hidden, property):
                found = f"{cls.__module__} with a field {field.name!r}"
                expected = f"another name: it hides {field.name} of {parent.__module__}"
                raise ConfigError(f"{where}.{choice}", found, expected)
    return configs.build(cls, section, **wiring)


def open_adapter(config: Config) -> Any:
    """Builds the adapter of a config (lm/adapters); a job may have none."""
    section = config.get("adapter") or configs.DEFAULT_NAMES["adapter"]
    return build_class("adapter", section, "adapter")


def _lacks(config: Config, model: Any, objective: Any) -> list[str]:
    """Lists missing abilities of the model, then missing arrays of the objective."""
    needs = objective.needs
    if not jobs.read(config.job, configs.ROOT)["loss"]:
        needs -= {"hidden"}  # Only the loss is computed from hidden states.
    return sorted(needs - model.can) + sorted(model.reads - objective.gives)


def _misfit(config: Config, build: Open, lacks: list[str], model: Any) -> ConfigError:
    """Makes the error for a model that does not fit the objective.

    The error names the first field of either whose change would mend it, if there is
    one.

    Args:
      lacks: the result of `_lacks`, not empty.
    """
    names = f"objective {config.objective.name} with model {config.model.name}"
    lack = lacks[0]
    does = f"reads {lack}"
    if lack not in model.reads:
        does = f"cannot {ABILITIES.get(lack, lack)} ({lack})"
    for section in ("objective", "model"):
        for field in configs.options(section, config[section].name).values():
            counts = {
                value: _remaining(
                    lacks, _changed(config, section, field.name, value), build
                )
                for value in _values(field)
            }
            least = min(counts.values(), default=math.inf)
            fits = [v for v, count in counts.items() if count == least < len(lacks)]
            if fits:
                where, found = f"{section}.{field.name}", config[section][field.name]
                expected = f"{' or '.join(map(repr, fits))}, for {names}"
                return ConfigError(where, f"{found!r}, a model that {does}", expected)
    return ConfigError(
        "model.name",
        f"{config.model.name!r}, which {does}",
        f"one that fits objective {config.objective.name}",
        "choose another model, or another objective.",
    )


def _values(field: schema.Field) -> list[Any]:
    """Returns values to try for a field: words, both of a bool, 0 where it may be."""
    match field.type:
        case ast.Subscript(ast.Name("Literal"), ast.Tuple(words)):
            return [ast.literal_eval(word) for word in words]
        case ast.Name("bool"):
            return [False, True]
        case ast.Name("int") if schema.within(0, field.bounds):
            return [0]
    return []


def _changed(config: Config, section: str, name: str, value: Any) -> Config:
    """Returns a config with one field changed."""
    return Config(config | {section: Config(config[section] | {name: value})})


def _remaining(lacks: list[str], config: Config, build: Open) -> float:
    """Counts what another config lacks; infinity if it lacks the first of `lacks`."""
    try:
        remaining = _lacks(config, *build(config))
    except ConfigError:
        return math.inf
    return math.inf if lacks[0] in remaining else len(remaining)


def _general(config: Config, model: Any, objective: Any) -> Iterator[Rule]:
    """Yields the rules that follow from the properties of model and objective."""
    name, parts = config.objective.name, config.grad_accum
    expected = f"1: the examples of objective {name} depend on each other"
    yield Rule(not objective.interacts or parts == 1, "grad_accum", parts, expected)
    if section := config["update"]:  # Not every job has one.
        update = build_class("update", section, "update")
        holds = not (objective.interacts and update.divides)
        expected = f"plain: the examples of objective {name} depend on each other"
        yield Rule(holds, "update.name", repr(section["name"]), expected)
        lacks = ", ".join(sorted(update.needs - objective.can))
        expected = f"plain: objective {name} does not offer {lacks}"
        yield Rule(not lacks, "update.name", repr(section["name"]), expected)
        yield from update.rules(config)
        expected = "plain: an adapter has no tables whose rows could change"
        holds = not (update.in_place and open_adapter(config).freezes)
        yield Rule(holds, "update.name", repr(section["name"]), expected)
    holds = open_adapter(config).freezes or "reference" not in objective.can
    expected = f"reference, or lora: objective {name} compares with frozen weights"
    found = repr(config.get("adapter", {}).get("name", "none"))
    yield Rule(holds, "adapter.name", found, expected)
    sections = {"data": config.data}
    sections |= {f"evals.{key}.data": e.data for key, e in config.evals.items()}
    for where, data in sections.items():
        expected = f"false: objective {name} has one example in a row"
        fix = f"set {where}.pack=false."
        holds = objective.packs or not data.pack
        yield Rule(holds, f"{where}.pack", "true", expected, fix)
    weights = [str(source["weight"]) for source in config.data.sources]
    expected = "one source, or several that follow each other: all of one weight"
    found = f"'stream' with sources of weights {', '.join(weights)}"
    holds = config.data.order != "stream" or len({*weights}) == 1
    yield Rule(holds, "data.order", found, expected)
    yield from _stream_rules(config, model, objective, config.data, "data")
    if config.data.windows == "drawn":
        found = f"'drawn' with order={config.data.order!r}, model {config.model.name}"
        expected = "order='stream' and a model that carries its state, or 'fixed'"
        carried = config.data.order == "stream" and "carry" in model.can
        yield Rule(carried, "data.windows", found, expected)
        found = f"'drawn' with {len(weights)} sources"
        yield Rule(len(weights) == 1, "data.windows", found, "one source")
    if model.context is None or "beyond" in model.can:
        return
    for where, length in objective.lengths(config.seq_len).items():
        expected = f"at most {model.context}, the positions that the model has"
        fix = f"lower {where}, or give the model more (model.max_len, where it has it)."
        yield Rule(length <= model.context, where, length, expected, fix)


def _stream_rules(
    config: Config, model: Any, objective: Any, data: Config, where: str
) -> Iterator[Rule]:
    """Yields the rules of order="stream" for the data of training or an evaluation.

    Args:
      objective: that of the evaluation.
      where: the path of the section.
    """
    streams = data.order == "stream"
    found = f"'stream' with objective {config.objective.name} as it is set"
    expected = "shuffled, or rows that begin where the row before them ends"
    fix = (
        f"set {where}.order=shuffled; objective causal_lm has such rows with "
        "objective.borders=reset or ignore."
    )
    holds = objective.streams or not streams
    yield Rule(holds, f"{where}.order", found, expected, fix)
    ends = model.context is not None and "beyond" not in model.can
    expected = "shuffled, or a model without end, since positions go on from row to row"
    found = f"'stream' with a model of {model.context} positions"
    yield Rule(not (streams and ends), f"{where}.order", found, expected)


def _check_kernel(config: Config, model: Any, objective: Any) -> None:
    """Refuses an attention kernel that does not support the objective's batches.

    The constructor of the model checks the kernel for the model's own options. Whether
    batches have a prefix depends on the objective.

    Raises:
      ConfigError: the LIMITS of `compute.attention` exclude a prefix.
    """
    needed = Requirements(
        dtype=config.compute.dtype, prefix="prefix" in objective.gives & model.can
    )
    if needed.prefix:
        check_implementation(config.compute.attention, needed)


def _check_evaluations(
    config: Config, model: Any, objective: Any
) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Checks the evaluations, and yields (name, names of its metrics) for each."""
    for name, section in config.evals.items():
        where = f"evals.{name}"
        evaluator = build_class("evaluator", section, where)
        changes = _checked_changes(config, section.objective, f"{where}.objective")
        changed = configs.Config(config.objective | changes)
        own = build_class("objective", changed, "objective")
        lacks = sorted(evaluator.needs - (model.can | own.can))
        if lacks:
            raise ConfigError(
                f"{where}.evaluator",
                f"{section.evaluator!r}, which needs {', '.join(lacks)}",
                f"what objective {config.objective.name} "
                f"({', '.join(sorted(own.can)) or 'nothing'}) or model "
                f"{config.model.name} ({', '.join(sorted(model.can))}) offers",
                f"choose one of {', '.join(_fitting(model.can | own.can))}.",
            )
        data = f"{where}.data"
        require(_stream_rules(config, model, own, section.data, data))
        require(evaluator.rules(config, where))
        yield name, evaluator.yields(own)


def _fitting(offered: frozenset[str]) -> Iterator[str]:
    """Yields the names of evaluators whose needs are among the abilities offered."""
    for name in configs.known("evaluator"):
        if configs.load_class("evaluator", name)().needs <= offered:
            yield name


def _checked_changes(
    config: Config, changes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Checks the fields of the objective that an evaluation changes.

    Raises:
      ConfigError: a field is unknown, or its value has the wrong type or bounds.
    """
    options = configs.options("objective", config.objective.name)
    for name in changes:
        if name not in options:
            raise configs.no_such(f"{where}.{name}", name, options)
    return {
        name: schema.check(options[name], value, f"{where}.{name}")
        for name, value in changes.items()
    }


def _metric_rules(
    config: Config, yielded: Mapping[str, tuple[str, ...] | None]
) -> Iterator[Rule]:
    """Yields the rule that the metrics which the run follows will exist.

    Args:
      yielded: the names of the metrics of each evaluation; None where they are unknown.
    """
    for where in ("checkpoint.best", "stop.metric", "optim.average_when"):
        section, _, field = where.partition(".")
        metric = config[section].get(field)
        # Training checks that there is an evaluation of optim.average_when.
        names = yielded.get(metric.partition("/")[0]) if metric else None
        if names is None:
            continue
        name = metric.partition("/")[0]
        known = [f"{name}/{each}" for each in names]
        near = schema.near(metric, known)
        yield Rule(
            metric in known,
            where,
            repr(metric),
            f"one of {', '.join(known)}" if known else f"a metric; {name} yields none",
            f"did you mean {near}?" if near else None,
        )


def changed(objective: Any, changes: Mapping[str, Any]) -> Any:
    """Returns an objective with the changes of an evaluation.

    Raises:
      ConfigError: the objective has no such field.
    """
    known = [field.name for field in dataclasses.fields(objective)]
    for name in changes:
        if name not in known:
            raise ConfigError(
                f"evals.<name>.objective.{name}",
                "an unknown field",
                f"one of {', '.join(known)}",
            )
    return dataclasses.replace(objective, **changes)
