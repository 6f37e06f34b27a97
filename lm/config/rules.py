"""Checks the rules between fields of a config that need no class.

Models, objectives and evaluators have rules of their own, which are checked in the
second stage: `lm/config/match.py`.
"""

import ast
import functools
import importlib.util
import itertools
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

from lm.config import durations
from lm.config.schema import near
from lm.errors import Rule, require

MOST_FOLDS = 1000


def check_rules(config: Mapping, examples_per_epoch: int | None = None) -> None:
    """Checks the rules between fields; again when the size of the data is known.

    Args:
      config: resolved.
      examples_per_epoch: None where it is not known yet; then durations in epochs, and
        what depends on them, are not checked.

    Raises:
      ConfigError: the first rule that does not hold.
    """
    require(
        itertools.chain(
            _time_rules(config, examples_per_epoch),
            _batch_rules(config),
            _metric_rules(config),
            _holdout_rules(config),
            _fold_rules(config),
            _optimiser_rules(config),
        )
    )


def _time_rules(c: Mapping, examples_per_epoch: int | None) -> Iterator[Rule]:
    """Yields the rules of durations; `to_steps` raises for one that is no number."""
    total: int | None = None

    def steps(where: str, duration: int | str, least: int = 1) -> int | None:
        """Converts to steps; None where that needs a total that is not known yet."""
        number, unit = _parsed(duration)
        unknown = {"epochs": examples_per_epoch, "percent": total}
        if number and unknown.get(unit, 0) is None:
            return None
        return durations.to_steps(
            duration,
            batch_size=c["batch_size"],
            seq_len=c["seq_len"],
            examples_per_epoch=examples_per_epoch or 0,
            total_steps=total or 0,
            where=where,
            least=least,
        )

    percent = _parsed(c["steps"])[1] == "percent"
    expected = "a duration in steps, epochs, examples or tokens"
    yield Rule(not percent, "steps", repr(c["steps"]), expected)
    total = steps("steps", c["steps"])
    optim = c["optim"]
    warmup = steps("optim.warmup", optim.get("warmup", 0), least=0)
    if optim.get("average_from") is not None:
        steps("optim.average_from", optim["average_from"], least=0)
    wsd = optim.get("schedule") == "wsd" and "decay" in optim
    decay = steps("optim.decay", optim["decay"]) if wsd else 0
    if total is not None and warmup is not None and decay is not None:
        found = f"{warmup} steps" + f" and {decay} of optim.decay" * wsd
        most = f"at most steps={total}"
        fix = "lower it, or raise steps."
        yield Rule(warmup + decay <= total, "optim.warmup", found, most, fix)
    for section in ("checkpoint", "log", *(f"evals.{name}" for name in c["evals"])):
        head, _, name = section.partition(".")
        fields = c[head][name] if name else c[head]
        if "every" in fields:
            steps(f"{section}.every", fields["every"])


def _parsed(duration: int | str) -> tuple[Fraction, str]:
    """Parses a duration whose form has been checked."""
    parsed = durations.parse(duration)
    assert parsed is not None, duration
    return parsed


def _batch_rules(c: Mapping) -> Iterator[Rule]:
    """Yields whether a batch can be cut into micro-batches."""
    yield Rule(
        c["batch_size"] % c["grad_accum"] == 0,
        "batch_size",
        c["batch_size"],
        f"a multiple of grad_accum={c['grad_accum']}",
        None,
    )


def _metric_rules(c: Mapping) -> Iterator[Rule]:
    """Yields whether `checkpoint.best` and `stop.metric` name an evaluation."""
    for section, field in (("checkpoint", "best"), ("stop", "metric")):
        metric = c[section].get(field)
        if metric is None:
            continue
        name, _, rest = metric.partition("/")
        names = ", ".join(f"{each}/<metric>" for each in c["evals"])
        guess = near(name, c["evals"])
        fix = None
        if name not in c["evals"] and guess:
            fix = f"did you mean {guess}/{rest or '<metric>'}?"
        holds = name in c["evals"] and rest != ""
        expected = f"a metric of an evaluation ({names or 'none: add evals'})"
        yield Rule(holds, f"{section}.{field}", repr(metric), expected, fix)


def _holdout_rules(c: Mapping) -> Iterator[Rule]:
    """Yields whether records held out for an evaluation are kept from training."""

    def content(source: Mapping) -> dict:
        shares = ("weight", "part", "holdout")
        return {key: value for key, value in source.items() if key not in shares}

    for name, evaluation in c["evals"].items():
        for i, held in enumerate(evaluation["data"]["sources"]):
            if held.get("part") != "heldout":
                continue
            wanted = {"part": "train", "holdout": held["holdout"]}
            for j, source in enumerate(c["data"]["sources"]):
                found = {key: source[key] for key in wanted}
                yield Rule(
                    found == wanted or content(source) != content(held),
                    f"data.sources.{j}",
                    found,
                    f"{wanted}, as evals.{name}.data.sources.{i} holds out of it",
                    None,
                )


def _fold_rules(c: Mapping) -> Iterator[Rule]:
    """Yields whether folds exist, and whether those evaluated are not trained on."""
    names = ("fold", "fold_labels", "fold_groups", "fold_seed")
    sections = {"data": c["data"]}
    sections |= {f"evals.{name}.data": e["data"] for name, e in c["evals"].items()}
    for where, data in sections.items():
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", data["fold"])
        number, count = map(int, found.groups()) if found else (0, 0)
        holds = not data["fold"] or (2 <= count <= MOST_FOLDS and 1 <= number <= count)
        expected = f'"i/k", the i-th of k folds, k from 2 to {MOST_FOLDS}'
        yield Rule(holds, f"{where}.fold", repr(data["fold"]), expected)
        wanted = {name: data[name] for name in names}
        own = {name: c["data"][name] for name in names}
        if data["fold"] and [*data["sources"]] == [*c["data"]["sources"]]:
            expected = (
                f"{wanted}, since {where} holds this fold out of the same sources"
            )
            yield Rule(own == wanted, "data", own, expected)


def _optimiser_rules(c: Mapping) -> Iterator[Rule]:
    """Yields whether optax mentions the optimiser; `lm.training.optim` checks more."""
    name, known = c["optim"].get("name"), _optax_names()
    guess = near(str(name), known)
    fix = f"did you mean {guess}?" if guess else None
    holds = name in known or not known or not c["optim"]
    expected = "an optimiser of optax, such as adamw"
    yield Rule(holds, "optim.name", repr(name), expected, fix)


@functools.cache
def _optax_names() -> frozenset[str]:
    """Lists the names of optax and optax.contrib, whose import would load jax."""
    found = importlib.util.find_spec("optax")
    names: set[str] = set()
    for place in found.submodule_search_locations or () if found else ():
        for file in ("__init__.py", "contrib/__init__.py"):
            text = (Path(place) / file).read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom):
                    names |= {alias.asname or alias.name for alias in node.names}
                elif isinstance(node, ast.Assign):
                    names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return frozenset(names)
