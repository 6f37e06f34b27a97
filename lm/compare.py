"""Command: compares the predictions of runs on one evaluation set.

python -m lm.compare RUN RUN ... [--eval=dev] [--metric=NAME]
"""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.config import names, schema
from lm.config.flags import Parser
from lm.config.resolve import ROOT
from lm.errors import ConfigError, DataError
from lm.host import process
from lm.metrics import classification, counts, regression, statistics
from lm.workdir import predictions
from lm.workdir.predictions import Predictions

USAGE = """python -m lm.compare RUN RUN ... [--eval=dev] [--metric=NAME]
    [--step=STEP] [--level=0.95] [--resamples=N] [--seed=N] [--json]

Compares each run with the first one by their predictions of the same records,
which an evaluation "predictions" with write=True leaves in the workdir: the
difference of a metric with its paired bootstrap interval, the p-value of
approximate randomisation, also corrected for the number of comparisons (Holm),
that of McNemar's exact test where a record has one class, and the effect size."""
MODULES = {"classes": classification, "numbers": regression}
FIRST = {"classes": "accuracy", "numbers": "pearson"}


class Comparison(NamedTuple):
    """A run held against the first.

    Attributes:
      run: its name.
      difference: of the metric, this run less the first.
      interval: of the difference.
      p: of approximate randomisation.
      mcnemar: the p-value of McNemar's test; None where it does not apply.
      effect: the mean of the paired differences of the records in their standard
        deviations: of right (1) or wrong (0), or of the absolute error.
    """

    run: str
    difference: float
    interval: statistics.Interval
    p: float
    mcnemar: float | None
    effect: float


class Report(NamedTuple):
    """What is printed.

    Attributes:
      flags: of the command.
      metric: its name.
      runs, values, intervals: of each run, its metric and the interval of that.
      found: the runs held against the first.
      holm: the p-value of each, corrected for their number.
    """

    flags: Namespace
    metric: str
    runs: list[Predictions]
    values: list[float]
    intervals: list[statistics.Interval]
    found: list[Comparison]
    holm: list[float]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags = parse(argv)
    runs = [predictions.read(Path(name), flags.eval, flags.step) for name in flags.runs]
    for other in runs[1:]:
        check_same(runs[0], other, flags.eval)
    module = MODULES[runs[0].kind]
    known = names.words(f"metrics.{module.__name__.rpartition('.')[2]}:*", ROOT)
    metric = flags.metric or FIRST[runs[0].kind]
    if metric not in known:
        raise schema.no_such("--metric", metric, known)
    options = {"resamples": flags.resamples, "level": flags.level, "seed": flags.seed}
    found = [compare(metric, runs[0], other, options) for other in runs[1:]]
    report = Report(
        flags,
        metric,
        runs,
        [measure(metric, each) for each in runs],
        [interval(metric, each, options) for each in runs],
        found,
        statistics.holm([each.p for each in found]),
    )
    print(to_json(report) if flags.json else to_text(report))
    return 0


def parse(argv: list[str]) -> Namespace:
    """Parses the flags.

    Raises:
      ConfigError: a flag is unknown or wrong.
    """
    parser = Parser("lm.compare", USAGE)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the workdir of a run")
    parser.add_argument(
        "--eval", default="dev", metavar="NAME", help="the evaluation (default: dev)"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a function of lm/metrics/classification.py, or of regression.py "
        "(default: accuracy, or pearson)",
    )
    parser.add_argument(
        "--step",
        metavar="STEP",
        help="the step of the predictions (default: the last one of each run)",
    )
    numbers = {"level": ("0.95", "(0, 1)"), "seed": ("0", "[0, 4294967295]")}
    numbers |= {"resamples": ("2000", "[1, 1000000]")}
    about = {
        "level": "the level of the intervals",
        "seed": "of the resamples",
        "resamples": "resamples of the bootstrap, and rounds of the randomisation",
    }
    for name, (default, bounds) in numbers.items():
        text = f"{about[name]} (a number in {bounds}; default: {default})"
        metavar = name.upper()
        parser.add_argument(f"--{name}", default=default, metavar=metavar, help=text)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    flags = parser.parse_args(argv)
    for name, (_, bounds) in numbers.items():
        value = schema.literal(getattr(flags, name))
        whole = name != "level"
        right = type(value) is int if whole else type(value) in (int, float)
        if not right or not schema.within(value, bounds):
            kind = "a whole number" if whole else "a number"
            expected = f"{kind} in {bounds}"
            raise ConfigError(f"--{name}", repr(getattr(flags, name)), expected)
        setattr(flags, name, value)
    if flags.step is not None and not flags.step.isdecimal():
        raise ConfigError("--step", repr(flags.step), "the number of a step")
    if len(flags.runs) < 2:
        raise ConfigError("flags", "one run", "two runs or more")
    return flags


def check_same(first: Predictions, other: Predictions, evaluation: str) -> None:
    """Refuses runs whose evaluation data differ.

    Raises:
      DataError: names what differs.
    """
    expected = f"the same records as {first.name} has in evaluation {evaluation!r}"
    found = None
    if len(other.hashes) != len(first.hashes):
        found = f"{len(other.hashes):,} records instead of {len(first.hashes):,}"
    elif other.hashes != first.hashes:
        pairs = enumerate(zip(first.hashes, other.hashes), 1)
        row = next(n for n, (one, two) in pairs if one != two)
        found = f"another text or label in record {row}"
    elif other.classes != first.classes:
        found = f"classes {', '.join(other.classes) or 'none'}"
        expected = f"classes {', '.join(first.classes) or 'none'}, as {first.name}"
    if found:
        raise DataError(other.name, found, expected, "evaluate them on the same data")


def measure(metric: str, of: Predictions) -> float:
    """Computes a metric of all records."""
    return getattr(MODULES[of.kind], metric)(of.labels, of.predicted)


def interval(
    metric: str, of: Predictions, options: dict[str, Any]
) -> statistics.Interval:
    """Computes the bootstrap interval of a metric."""
    function = getattr(MODULES[of.kind], metric)
    return statistics.bootstrap(
        lambda n: function(of.labels[n], of.predicted[n]), len(of.hashes), **options
    )


def compare(
    metric: str, first: Predictions, other: Predictions, options: dict[str, Any]
) -> Comparison:
    """Holds a run against the first."""
    function, labels = getattr(MODULES[first.kind], metric), first.labels
    a, b = first.predicted, other.predicted

    def paired(n: np.ndarray) -> float:
        return function(labels[n], b[n]) - function(labels[n], a[n])

    def swapped(swap: np.ndarray) -> float:
        mask = swap.reshape(-1, *[1] * (a.ndim - 1))
        one, two = np.where(mask, b, a), np.where(mask, a, b)
        return function(labels, two) - function(labels, one)

    n, rounds, seed = len(labels), options["resamples"], options["seed"]
    scores = [score(labels, each) for each in (a, b)]
    single = bool(first.classes) and not counts.several(labels)
    only = [int(((x == 1) & (y == 0)).sum()) for x, y in (scores, scores[::-1])]
    return Comparison(
        run=other.name,
        difference=paired(np.arange(n)),
        interval=statistics.bootstrap(paired, n, **options),
        p=statistics.sign_flip(swapped, n, rounds=rounds, seed=seed),
        mcnemar=statistics.mcnemar(*only) if single else None,
        effect=statistics.effect_size(scores[1] - scores[0]),
    )


def score(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns how good the prediction of each record is: right or not, or -|error|."""
    if predicted.ndim == 1:
        return -np.abs(predicted - labels)
    truth = counts.actual(labels, predicted.shape[1])
    return (counts.chosen(labels, predicted) == truth).all(1).astype(np.float64)


def to_text(report: Report) -> str:
    """Formats the comparisons, in lines of 80 columns but for long names of runs."""
    flags, first = report.flags, report.runs[0]
    head = f"{flags.eval}: {report.metric} of {len(first.hashes):,} records"
    lines = [f"{head}, intervals of level {flags.level:g}"]
    for one, value, (low, high) in zip(report.runs, report.values, report.intervals):
        lines.append(f"  {value:.4f} [{low:.4f}, {high:.4f}]  {one.name}")
    for each, corrected in zip(report.found, report.holm):
        low, high = each.interval
        lines += ["", f"{each.run} less {first.name}"]
        lines.append(f"  difference {each.difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        tests = f"  p {each.p:.4f} by randomisation"
        tests += f", {corrected:.4f} by Holm" if len(report.found) > 1 else ""
        if each.mcnemar is not None:
            tests += f"; {each.mcnemar:.4f} by McNemar"
        lines += [tests, f"  effect size {each.effect:+.3f}: {verdict(each)}"]
    return "\n".join(lines)


def verdict(of: Comparison) -> str:
    """Says in words what the interval of the difference shows."""
    if math.isnan(of.interval.low):
        return "the metric is not defined"
    if of.interval.holds(0.0):
        return "no difference shown"
    return "higher" if of.difference > 0 else "lower"


def to_json(report: Report) -> str:
    """Formats the comparisons as JSON; a value that is not defined is null."""

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    runs = zip(report.runs, report.values, report.intervals)
    made = {
        "evaluation": report.flags.eval,
        "metric": report.metric,
        "records": len(report.runs[0].hashes),
        "level": report.flags.level,
        "runs": [
            {"run": one.name, "value": number(value), "interval": [*map(number, ends)]}
            for one, value, ends in runs
        ],
        "differences": [
            {
                "run": each.run,
                "less": report.runs[0].name,
                "difference": number(each.difference),
                "interval": [*map(number, each.interval)],
                "p": each.p,
                "p_holm": corrected,
                "p_mcnemar": each.mcnemar,
                "effect_size": number(each.effect),
                "verdict": verdict(each),
            }
            for each, corrected in zip(report.found, report.holm)
        ],
    }
    return json.dumps(made, indent=1, allow_nan=False)


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
