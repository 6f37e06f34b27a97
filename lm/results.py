"""Part: the results of many runs of one config: kept, gathered by setting, shown."""

import dataclasses
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.config import sweeps
from lm.errors import DataError, Refusal
from lm.host import files, storage
from lm.metrics import classification, regression, statistics
from lm.metrics.statistics import Spread
from lm.workdir import predictions
from lm.workdir.lines import WIDTH
from lm.workdir.writer import plain_row, read_rows

MODULES = {"classes": classification, "numbers": regression}
NAME = 22  # columns of the name of a setting
LEVEL = 0.95
# Evaluations by whose figures nothing should be chosen.
TEST = re.compile(r"(^|[_-])test([\d_-]|$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Result:
    """A run of a sweep.

    Attributes:
      config: `FILE[:ARG]`.
      name: of the setting, `sweeps.describe`.
      folder: the run's, in that of the sweep.
      setting: field -> value.
      status: waiting, running, done, failed, or stopped by a signal.
      code: the exit code of its last process; negative: a signal that killed it.
      error: why it failed.
      seconds: of all of its processes.
      attempts: how many there were.
      last: the newest value of each metric of an evaluation, and the last `step`.
      best: the metrics of the step that is best by checkpoint.best, and that `step`.
    """

    config: str
    name: str
    folder: str
    setting: Mapping[str, Any]
    status: str = "waiting"
    code: int | None = None
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 0
    last: Mapping[str, float] = dataclasses.field(default_factory=dict)
    best: Mapping[str, float] = dataclasses.field(default_factory=dict)


def write(path: Path, results: Sequence[Result]) -> None:
    """Writes the results, a row of JSON each; the old file stays until all are written.

    Raises:
      StorageError: the disk is full, or cannot be written.
    """
    rows = []
    for each in results:
        measured = {name: plain_row(getattr(each, name)) for name in ("last", "best")}
        rows.append(json.dumps(dataclasses.asdict(each) | measured, allow_nan=False))
    storage.write_text(path, "".join(f"{row}\n" for row in rows))


def read(path: Path) -> dict[str, Result]:
    """Reads the results of a sweep by their folders; {} where there is no file.

    Raises:
      DataError: it is not what was written.
    """
    if files.check_regular(path, DataError) is None:
        return {}
    like: dict[str, Any] = {"config": "", "name": "", "folder": "", "setting": {}}
    like |= {"status": "", "seconds": 0.0, "attempts": 0, "last": {}, "best": {}}
    found = {}
    lines = files.read_text(path, error=DataError).splitlines()
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        row = files.parse_json(line, place, like, DataError, "a row of lm.sweep")
        fields = {each.name for each in dataclasses.fields(Result)}
        kept = {name: value for name, value in row.items() if name in fields}
        for name in ("last", "best"):
            try:
                kept[name] = {key: float(value) for key, value in row[name].items()}
            except (TypeError, ValueError):
                raise DataError(f"{place}: {name}", "no number", "numbers") from None
        found[row["folder"]] = Result(**kept)
    return found


def measure(workdir: Path, best: str | None, mode: str) -> dict[str, dict[str, float]]:
    """Reads the metrics of a run: `last` and `best` of a `Result`.

    Args:
      best: the metric that checkpoint.best follows; None: the run has no best step.
      mode: "min" or "max".
    """
    file = workdir / "metrics.jsonl"
    rows = read_rows(file) if files.check_regular(file) is not None else []
    last: dict[str, float] = {}
    chosen: dict[str, float] = {}
    for row in rows:
        own = {
            name: value
            for name, value in row.items()
            if "/" in name and not name.startswith(("train/", "optim/"))
        }
        last |= own | {"step": row["step"]}
        value = own.get(best or "", math.nan)
        sign = 1 if mode == "max" else -1
        better = not chosen or sign * value > sign * chosen[best or ""]
        if math.isfinite(value) and better:
            chosen = own | {"step": row["step"]}
    return {"last": last, "best": chosen}


class Choice(NamedTuple):
    """What is shown of the results.

    Attributes:
      metrics: their names; () takes those of the first evaluation.
      at: "best", the step that is best by checkpoint.best, or "last".
      select: the metric by which a setting is chosen; None chooses none.
      mode: "min" or "max", whether a smaller or a larger value of it is better.
      evaluation: the first one of the config.
      best: the metric that checkpoint.best follows.
    """

    metrics: tuple[str, ...]
    at: str
    select: str | None
    mode: str
    evaluation: str | None
    best: str | None = None


class Group(NamedTuple):
    """The runs of one setting, which differ in seed and fold.

    Attributes:
      setting: without seed and fold.
      name: of the setting.
      runs: its results, finished or not.
    """

    setting: Mapping[str, Any]
    name: str
    runs: list[Result]

    def count(self, *statuses: str) -> int:
        return sum(run.status in statuses for run in self.runs)

    def values(self, metric: str, at: str) -> dict[str, float]:
        """Returns the values of a metric by seed and fold, of the runs that are done.

        Values that are not finite are left out.
        """
        found = {}
        for run in self.runs:
            value = getattr(run, at).get(metric, math.nan)
            if run.status == "done" and math.isfinite(value):
                found[repr([run.setting.get(path) for path in sweeps.REPEATS])] = value
        return found


class Pooled(NamedTuple):
    """A metric of the predictions of all folds together.

    Attributes:
      value: the mean over the seeds.
      folds, records: how many there are.
      seeds: how many have all of their folds.
    """

    value: float
    folds: int
    records: int
    seeds: int


class Lead(NamedTuple):
    """The best setting beside the next one.

    Attributes:
      best, next: their names; `next` None where there is no other.
      difference: of the metric, best less next, over the runs of the same seed and
        fold; None where there are none.
    """

    best: str
    next: str | None
    difference: Spread | None


def gather(results: Sequence[Result]) -> list[Group]:
    """Gathers the runs of each setting, in the order of the first."""
    groups: dict[str, Group] = {}
    for run in results:
        setting = sweeps.group_of(dict(run.setting))
        name = sweeps.describe(setting)
        groups.setdefault(name, Group(setting, name, [])).runs.append(run)
    return [*groups.values()]


def metrics_of(results: Sequence[Result], choice: Choice) -> tuple[str, ...]:
    """Returns the metrics to show: those chosen, or all of the first evaluation."""
    if choice.metrics:
        return choice.metrics
    seen = {name for run in results for name in getattr(run, choice.at)}
    return tuple(
        sorted(
            name
            for name in seen
            if name.startswith(f"{choice.evaluation}/")
            and not (
                name.endswith(("_low", "_high")) and name.rpartition("_")[0] in seen
            )
        )
    )


def lead(groups: Sequence[Group], choice: Choice) -> Lead | None:
    """Finds the setting with the best mean; None where there is nothing to choose."""
    if choice.select is None or len(groups) < 2:
        return None
    sign = 1 if choice.mode == "max" else -1
    found = [(group.name, group.values(choice.select, choice.at)) for group in groups]
    ranked = sorted(
        ((name, values) for name, values in found if values),
        key=lambda pair: -sign * float(np.mean([*pair[1].values()])),
    )
    if not ranked:
        return None
    if len(ranked) == 1:
        return Lead(ranked[0][0], None, None)
    (best, ours), (other, theirs) = ranked[:2]
    pairs = [ours[key] - theirs[key] for key in ours if key in theirs]
    difference = statistics.spread(pairs, LEVEL) if pairs else None
    return Lead(best, other, difference)


def pool(folder: Path, group: Group, metric: str, at: str) -> Pooled | None:
    """Computes a metric of the predictions of all folds.

    Returns:
      None where the runs have no folds, not all of a seed are done, they have written
      no predictions, or the metric is not of predictions.
    """
    evaluation, _, name = metric.partition("/")
    seeds: dict[Any, dict[str, Result]] = {}
    for run in group.runs:
        fold = run.setting.get(sweeps.FOLD)
        if run.status == "done" and isinstance(fold, str) and fold:
            seeds.setdefault(run.setting.get(sweeps.SEED), {})[fold] = run
    values, records, count = [], 0, 0
    for runs in seeds.values():
        wanted = int(next(iter(runs)).partition("/")[2])
        if len(runs) < wanted:
            continue
        try:
            folds = [
                predictions.read(
                    folder / run.folder,
                    evaluation,
                    str(int(run.best["step"])) if at == "best" else None,
                )
                for run in runs.values()
            ]
        except (Refusal, KeyError):
            return None
        first = folds[0]
        function = getattr(MODULES[first.kind], name, None)
        same = {(each.kind, each.classes) for each in folds}
        if function is None or name.startswith("_") or len(same) > 1:
            return None
        labels = np.concatenate([each.labels for each in folds])
        values.append(
            function(labels, np.concatenate([each.predicted for each in folds]))
        )
        records, count = len(labels), wanted
    if not values:
        return None
    return Pooled(float(np.mean(values)), count, records, len(values))


# ── Shown ───────────────────────────────────────────────────────────────────────────


def to_text(folder: Path, results: Sequence[Result], choice: Choice) -> str:
    """Formats the results in 80 columns.

    Each metric has a table with a line for each setting; metrics of a single setting
    are the lines of one table.

    Args:
      folder: of the sweep.
    """
    groups, metrics = gather(results), metrics_of(results, choice)
    first = lead(groups, choice)
    best = first.best if first else None
    lines: list[str] = []
    if len(groups) == 1 and metrics:
        lines += _head(f"{groups[0].name}, the {choice.at} step of each run")
        for metric in metrics:
            lines += _row(folder, groups[0], metric, choice.at, metric)
    else:
        for metric in metrics:
            lines += _head(f"{metric} at the {choice.at} step of each run")
            for group in groups:
                name = f"{group.name} *" if group.name == best else group.name
                lines += _row(folder, group, metric, choice.at, name)
    for line in _remarks(results, choice, first):
        lines += _wrap(line)
    return "\n".join(lines)


def _head(title: str) -> list[str]:
    cells = f"{'mean':>9}{'sd':>9}{f'{LEVEL:.0%} interval':>20}{'median':>9}"
    return ["", *_wrap(title), f"{'':{NAME}}{cells}{'n':>4}{'failed':>7}"]


def _row(folder: Path, group: Group, metric: str, at: str, name: str) -> Iterator[str]:
    """Yields the lines of a metric of a setting, of which `name` is the first cell."""
    held = statistics.spread([*group.values(metric, at).values()], LEVEL)
    if len(name) > NAME:
        yield from _wrap(name)
        name = ""
    low, high = map(_number, held.interval)
    interval = "-" if low == "-" else f"[{low}, {high}]"
    cells = f"{_number(held.mean):>9}{_number(held.deviation):>9}{interval:>20}"
    cells += f"{_number(held.median):>9}{held.n:>4}{group.count('failed'):>7}"
    yield f"{name:{NAME}}{cells}"
    pooled = pool(folder, group, metric, at)
    if pooled is not None:
        seeds = f", mean of {pooled.seeds} seeds" if pooled.seeds > 1 else ""
        value, records = _number(pooled.value), f"{pooled.records:,}"
        yield f"  pooled: {value} of {records} records in {pooled.folds} folds{seeds}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def _remarks(
    results: Sequence[Result], choice: Choice, first: Lead | None
) -> Iterator[str]:
    """Yields lines on what was chosen, on what may mislead, and on what is missing."""
    if first is not None:
        word = "highest" if choice.mode == "max" else "lowest"
        line = f"* selected: {first.best}, the {word} mean of {choice.select}"
        if first.next is not None and first.difference is not None:
            held, count = first.difference, first.difference.n
            line += f"; less {first.next}: {held.mean:+.4f}"
            low, high = held.interval
            if not math.isnan(low):
                line += f" [{low:+.4f}, {high:+.4f}]"
                line += ", no difference shown," if held.interval.holds(0.0) else ""
            line += f" over {count} pair{'s' * (count != 1)}"
        yield line
    if choice.at == "best" and is_test(choice.best or ""):
        yield (
            f"warning: checkpoint.best follows {choice.best}, of a test set, whose "
            "figures at the best step are too good to be reported"
        )
    folded = any(sweeps.FOLD in run.setting for run in results)
    if folded:
        yield (
            "the folds share training records, so that the interval is too narrow "
            "(Bengio and Grandvalet 2004)"
        )
    for metric in metrics_of(results, choice):
        lacking = [
            run.name
            for run in results
            if run.status == "done"
            and not math.isfinite(getattr(run, choice.at).get(metric, math.nan))
        ]
        if lacking:
            yield f"without a finite {metric}: {_list(lacking)}"
    failed = [run for run in results if run.status == "failed"]
    for run in failed[:10]:
        yield f"failed: {run.name}: {explain(run)}"
    if failed[10:]:
        yield f"failed, too: {_list([run.name for run in failed[10:]])}"
    left = [run for run in results if run.status not in ("done", "failed")]
    if left:
        yield f"{len(left)} of {len(results)} runs are not done"


def is_test(metric: str) -> bool:
    """Returns whether a metric is of an evaluation that is called a test."""
    return TEST.search(metric.partition("/")[0]) is not None


def explain(run: Result) -> str:
    """Says why a run failed."""
    code = run.code if run.code is not None else 1
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    return f"{how}: {run.error}" if run.error else how


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return "; ".join(names[:5]) + more


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def to_json(folder: Path, results: Sequence[Result], choice: Choice) -> str:
    """Formats the same as JSON; a value that is not defined is null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def spread(held: Spread) -> dict[str, Any]:
        return {
            "n": held.n,
            "mean": number(held.mean),
            "deviation": number(held.deviation),
            "interval": [*map(number, held.interval)],
            "median": number(held.median),
        }

    groups, settings = gather(results), []
    for group in groups:
        measured = {}
        for metric in metrics_of(results, choice):
            values = [*group.values(metric, choice.at).values()]
            pooled = pool(folder, group, metric, choice.at)
            measured[metric] = spread(statistics.spread(values, LEVEL)) | {
                "values": values,
                "pooled": None if pooled is None else number(pooled.value),
            }
        settings.append(
            {
                "name": group.name,
                "setting": dict(group.setting),
                "runs": len(group.runs),
                "done": group.count("done"),
                "failed": group.count("failed"),
                "metrics": measured,
            }
        )
    first = lead(groups, choice)
    made: dict[str, Any] = {
        "config": results[0].config,
        "at": choice.at,
        "level": LEVEL,
        "settings": settings,
        "selected": None,
    }
    if first is not None:
        difference = None if first.difference is None else spread(first.difference)
        made["selected"] = {
            "name": first.best,
            "by": choice.select,
            "mode": choice.mode,
            "next": first.next,
            "difference": difference,
        }
    return json.dumps(made, indent=1, allow_nan=False) + "\n"
