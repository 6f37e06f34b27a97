"""The second stage of the check: asks the classes that a config names.

Types, bounds and general rules are checked without importing anything (`rules.py`).
Here the model, the objective and the evaluators are built, without data, and answer for
themselves: what they need, offer and yield. All this is before the workdir is touched.
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
from lm.ops.attention.limits import Wanted, check_implementation

Open = Callable[[Config], tuple[Any, Any]]


def check(
    config: Config, build: Open, needs: Iterable[str] = (), asker: str = ""
) -> None:
    """Checks that the parts of a config fit together.

    Args:
      build: config -> (model, objective), neither with data or parameters.
      needs: words of `can` that the model or the objective must offer to a command.
      asker: the name of that command, for the error.

    Raises:
      ConfigError: the first thing that does not fit.
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
    """Builds what a section names.

    Raises:
      ConfigError: the class lacks a method that every one of its kind has.
    """
    choice = classes.CHOICE[kind]
    cls = configs.load_class(kind, section[choice])
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        expected = f"every method of lm/{kind}s/base.py"
        where, found = f"{where}.{choice}", f"{cls.__module__} without"
        raise ConfigError(where, f"{found} {', '.join(missing)}", expected)
    return configs.build(cls, section, **wiring)


def _lacks(config: Config, model: Any, objective: Any) -> list[str]:
    """Lists by what a model does not fit an objective."""
    needs = objective.needs
    if not jobs.read(config.job, configs.ROOT)["loss"]:
        needs -= {"hidden"}  # What the loss is computed from.
    return sorted(needs - model.can) + sorted(model.reads - objective.gives)


def _misfit(config: Config, build: Open, lacks: list[str], model: Any) -> ConfigError:
    """Makes the error for model and objective, with a field that would mend it."""
    names = f"objective {config.objective.name} with model {config.model.name}"
    lack = lacks[0]
    does = f"reads {lack}"
    if lack not in model.reads:
        does = f"cannot {ABILITIES.get(lack, lack)} ({lack})"
    for section in ("objective", "model"):
        for field in configs.options(section, config[section].name).values():
            counts = {
                value: _left(lacks, _with(config, section, field.name, value), build)
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
    """Returns the words that a field may hold; of a whole number, 0 where it may."""
    match field.type:
        case ast.Subscript(ast.Name("Literal"), ast.Tuple(words)):
            return [ast.literal_eval(word) for word in words]
        case ast.Name("int") if schema.within(0, field.bounds):
            return [0]
    return []


def _with(config: Config, section: str, name: str, value: Any) -> Config:
    """Changes one field of a config."""
    return Config(config | {section: Config(config[section] | {name: value})})


def _left(lacks: list[str], config: Config, build: Open) -> float:
    """Counts what another config lacks; infinite where the first of `lacks` stays."""
    try:
        left = _lacks(config, *build(config))
    except ConfigError:
        return math.inf
    return math.inf if lacks[0] in left else len(left)


def _weights(config: Config) -> list[str]:
    return [str(source["weight"]) for source in config.data.sources]


def _general(config: Config, model: Any, objective: Any) -> Iterator[Rule]:
    """Yields the conditions that follow from what model and objective declare."""
    name, parts = config.objective.name, config.grad_accum
    expected = f"1: the examples of objective {name} depend on each other"
    yield Rule(not objective.interacts or parts == 1, "grad_accum", parts, expected)
    sections = {"data": config.data}
    sections |= {f"evals.{key}.data": e.data for key, e in config.evals.items()}
    for where, data in sections.items():
        expected = f"false: objective {name} has one example in a row"
        fix = f"set {where}.pack=false."
        holds = objective.packs or not data.pack
        yield Rule(holds, f"{where}.pack", "true", expected, fix)
    streams, weights = config.data.order == "stream", _weights(config)
    expected = "one source, or several that follow each other: all of one weight"
    found = f"'stream' with sources of weights {', '.join(weights)}"
    yield Rule(not streams or len({*weights}) == 1, "data.order", found, expected)
    if model.context is None or "beyond" in model.can:
        return
    expected = "shuffled, or a model without end, since positions go on from row to row"
    found = f"'stream' with a model of {model.context} positions"
    yield Rule(not streams, "data.order", found, expected)
    for where, length in objective.lengths(config.seq_len).items():
        expected = f"at most {model.context}, the positions that the model has"
        fix = f"lower {where}, or give the model more (model.max_len, where it has it)."
        yield Rule(length <= model.context, where, length, expected, fix)


def _check_kernel(config: Config, model: Any, objective: Any) -> None:
    """Refuses a kernel of attention that cannot compute the objective's batches.

    What the model itself asks of the kernel, its constructor checks. Whether there is a
    prefix, only the objective knows.

    Raises:
      ConfigError: the LIMITS of `compute.attention` exclude a prefix.
    """
    wanted = Wanted(
        dtype=config.compute.dtype, prefix="prefix" in objective.gives & model.can
    )
    if wanted.prefix:
        check_implementation(config.compute.attention, wanted)


def _check_evaluations(
    config: Config, model: Any, objective: Any
) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Yields (name, the metrics that it may yield) of each evaluation."""
    for name, section in config.evals.items():
        where = f"evals.{name}"
        evaluator = build_class("evaluator", section, where)
        changes = _checked(config, section.objective, f"{where}.objective")
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
        require(evaluator.rules(config, where))
        yield name, evaluator.yields(own)


def _fitting(offered: frozenset[str]) -> Iterator[str]:
    """Yields the evaluators that need no more than what is offered."""
    for name in configs.known("evaluator"):
        if configs.load_class("evaluator", name)().needs <= offered:
            yield name


def _checked(config: Config, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks the fields of the objective that an evaluation changes."""
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
    """Yields whether the metrics that the run follows will exist."""
    for where in ("checkpoint.best", "stop.metric"):
        section, _, field = where.partition(".")
        metric = config[section][field]
        names = yielded[metric.partition("/")[0]] if metric else None
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
    """Replaces some fields of the objective, as an evaluation asks.

    Raises:
      ConfigError: it has no such field.
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
