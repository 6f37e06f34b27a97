"""Metrics that need all predictions of a set at once, such as F1, AUC and Spearman."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import names
from lm.config.resolve import ROOT
from lm.errors import Refusal
from lm.evaluators import base
from lm.host import storage
from lm.metrics import baselines, classification, counts, regression, statistics
from lm.objectives.base import Objective

PLACES = {
    "classes": "metrics.classification:*",
    "numbers": "metrics.regression:*",
}
WORDS = {"metrics": "metrics.classification:* metrics.regression:*"}
BOUNDS = {"level": "(0, 1)", "resamples": "[0, 100000]"}
CHANGEABLE = ("level", "resamples", "write")
DEFAULTS = {
    "classes": ("accuracy", "precision", "recall", "f1", "auc"),
    "numbers": ("pearson", "spearman", "mse"),
}
SHOWN = 20  # classes of which the samples have a table


class Found(NamedTuple):
    """The labels of a set and what the model predicts.

    Attributes:
      labels: (n,) or (n, classes).
      predictions: (n, ...) of each name.
      rows: the first row of each record, (n,).
    """

    labels: np.ndarray
    predictions: dict[str, np.ndarray]
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Metrics over the records of a set, with intervals, without padding rows.

    A metric is followed by `<metric>_low` and `<metric>_high`, the bootstrap interval
    over the records. A record of several windows is predicted by the mean of their
    logits. The samples have the confusion of the classes, and the figures of plain
    methods stand in the log, once.

    Attributes:
      metrics: names of public functions of lm/metrics/classification.py, or of
        regression.py where the objective predicts numbers; () takes a few of them.
      each_class: whether precision, recall and F1 of each class are given too, as
        `<class>/f1` and so on.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
      plain_methods: whether plain methods are fitted to the training rows: the most
        frequent class, logistic regression on tokens and their pairs, and, for pairs of
        texts, the overlap of their tokens.
      write: whether the predictions are written, to
        `predictions/<evaluation>-<step>.jsonl`; lm.compare reads them.
    """

    metrics: tuple[str, ...] = ()
    each_class: bool = False
    level: float = 0.95
    resamples: int = 1000
    plain_methods: bool = True
    write: bool = False

    @property
    def needs(self) -> frozenset[str]:
        given = {*self.metrics} | ({"f1"} if self.each_class else set())
        kinds = {kind for kind in PLACES if given & {*names.words(PLACES[kind], ROOT)}}
        return frozenset({"labels"} | kinds)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        chosen = [*self._metrics(objective), *self._of_classes(objective)]
        ends = ("", "_low", "_high") if self.resamples else ("",)
        return tuple(name + end for name in chosen for end in ends)

    def _metrics(self, objective: Objective) -> tuple[str, ...]:
        return self.metrics or DEFAULTS[_kind(objective)]

    def _of_classes(self, objective: Objective) -> list[str]:
        """Lists the metrics of single classes."""
        if not self.each_class:
            return []
        kinds = ("precision", "recall", "f1")
        return [f"{name}/{kind}" for name in objective.class_names() for kind in kinds]

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        objective = examples.objective
        found = collect(examples, model)
        kind = _kind(objective)
        predicted = found.predictions[_ARRAYS[kind]]
        if not np.isfinite(predicted).all():
            out.note("the model's predictions are not finite: nor are the metrics")
            yield from ((name, math.nan) for name in self.yields(objective))
            return
        for name in [*self._metrics(objective), *self._of_classes(objective)]:
            value = compute(name, objective, found.labels, predicted)
            if math.isnan(value):
                why = describe_classes(found.labels, predicted)
                out.note(f"{name} is not defined here{why}")
            yield name, value
            if self.resamples:
                yield from self._interval(name, value, objective, found, predicted)
        if jax.process_index() == 0:
            if kind == "classes" and found.labels.ndim == 1:
                names_ = objective.class_names()
                text = confusion_table(found.labels, predicted, names_)
                storage.write_text(out.samples, text + "\n")
            if self.write:
                write(examples, found, out)
        if self.plain_methods and not examples.memo.get("baseline"):
            examples.memo["baseline"] = True
            note_baselines(self._metrics(objective), examples, found, out)

    def _interval(
        self,
        name: str,
        value: float,
        objective: Objective,
        found: Found,
        predicted: np.ndarray,
    ) -> Iterator[tuple[str, float]]:
        """Yields the bounds of the bootstrap interval of a metric."""

        def measure(numbers: np.ndarray) -> float:
            return compute(name, objective, found.labels[numbers], predicted[numbers])

        interval = statistics.Interval(math.nan, math.nan)
        if not math.isnan(value):
            interval = statistics.bootstrap(
                measure,
                len(predicted),
                resamples=self.resamples,
                level=self.level,
                seed=self.seed,
            )
        yield from interval.named(name)


_ARRAYS = {"classes": "probabilities", "numbers": "scores"}


def _kind(objective: Objective) -> str:
    """Returns what the objective predicts: "classes" or "numbers"."""
    return next(kind for kind in PLACES if kind in objective.can)


def compute(
    name: str, objective: Objective, labels: np.ndarray, predicted: np.ndarray
) -> float:
    """Computes a metric by its name, also one of a single class (`<class>/f1`)."""
    of, _, metric = name.rpartition("/")
    if of:
        place = objective.class_names().index(of)
        truth = counts.actual(labels, predicted.shape[1])[:, place].astype(np.int64)
        guess = counts.chosen(labels, predicted)[:, place].astype(np.float64)
        labels, predicted = truth, np.stack([1 - guess, guess], 1)
    module = classification if "classes" in objective.can else regression
    return getattr(module, metric)(labels, predicted)


def collect(examples: base.Examples, model: base.Functions) -> Found:
    """Predicts all rows of a set, and joins the windows of a record."""
    labels: list[np.ndarray] = []
    parts: list[dict[str, np.ndarray]] = []
    for batch in examples.batches(by_length=True):
        batch, predictions = model.predict(batch)
        real = np.asarray(batch["label_weights"]) > 0
        labels.append(np.asarray(batch["labels"])[real])
        parts.append({k: np.asarray(v)[real] for k, v in predictions.items()})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    known, rows = np.concatenate(labels), np.arange(sum(map(len, labels)))
    order = examples.stream.from_longest(len(rows))
    if order is not None:
        places = np.argsort(order)
        known = known[places]
        found = {name: array[places] for name, array in found.items()}
    records = records_of(examples, len(rows))
    if len(first := np.unique(records, return_index=True)[1]) == len(rows):
        return Found(known, found, rows)
    # The windows of a record are neighbours.
    first = np.sort(first)
    sums = np.add.reduceat(found["logits"], first)
    means = sums / np.diff(first, append=len(rows))[:, None]
    joined = examples.objective.conclude(jnp.asarray(means, jnp.float32))
    return Found(known[first], {k: np.asarray(v) for k, v in joined.items()}, first)


def records_of(examples: base.Examples, rows: int) -> np.ndarray:
    """Returns a number for the record of each of the first rows, (rows,)."""
    numbers, before = [], 0
    for index in examples.stream.indices:
        own = np.asarray(index.fields["record"])
        numbers.append(own + before)
        before += int(own[-1]) + 1
    return np.concatenate(numbers)[:rows]


def write(examples: base.Examples, found: Found, out: base.Outputs) -> None:
    """Writes for each record its hash, its label, and what is predicted.

    The hash is of the texts and the label, so that predictions of two runs can be
    matched.
    """
    objective, lines = examples.objective, []
    wanted = iter(found.rows.tolist())
    at = next(wanted, None)
    number = 0
    for row, record in enumerate(examples.records()):
        if row != at:
            continue
        label = objective.label_of(found.labels[number])
        texts = [str(record.fields[column]) for column in objective.columns()]
        hashed = json.dumps([*texts, label]).encode()
        line: dict[str, Any] = {"hash": hashlib.sha256(hashed).hexdigest()[:16]}
        line["label"] = label
        if "scores" in found.predictions:
            line["score"] = float(str(found.predictions["scores"][number]))
        else:
            values = found.predictions["probabilities"][number].astype(np.float32)
            named = zip(objective.class_names(), values)
            line["probabilities"] = {name: float(str(value)) for name, value in named}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        number, at = number + 1, next(wanted, None)
    storage.write_text(out.predictions, "".join(lines))


def note_baselines(
    metrics: tuple[str, ...],
    examples: base.Examples,
    found: Found,
    out: base.Outputs,
) -> None:
    """Notes what plain methods reach on the set, fitted to the training rows."""
    objective = examples.objective
    try:
        train = examples.train()
    except Refusal as error:  # such as training data that are not on this machine
        out.note(f"no plain baseline: {error.where}: {error.found}")
        return
    for name, predicted in _baselines(train, examples, found):
        values = [compute(m, objective, found.labels, predicted) for m in metrics]
        shown = "  ".join(f"{m} {value:.4f}" for m, value in zip(metrics, values))
        out.note(f"{out.samples.stem.rpartition('-')[0]} by {name}: {shown}")


def _baselines(
    train: Any, examples: base.Examples, found: Found
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of a plain method and its predictions for the records."""
    if any("labels" not in index.fields for index in train.indices):
        return  # labels of several classes at once
    kept = np.concatenate([index.fields["labels"] for index in train.indices])
    labels = kept.astype(np.float64 if kept.dtype.kind == "f" else np.int64)
    rows = [
        index.row(i)["pieces"] for index in train.indices for i in range(len(index))
    ]
    asked = [
        examples.stream.indices[source].row(row)["pieces"]
        for source, _, row in map(examples.stream.locate, found.rows.tolist())
    ]
    pairs = len(examples.objective.columns()) > 1
    if "numbers" in examples.objective.can:
        if pairs:
            yield "overlap of tokens", baselines.overlap_numbers(rows, labels, asked)
        return
    classes = len(examples.objective.class_names())
    shares = baselines.majority(labels, classes, len(asked))
    yield "the most frequent class", shares
    yield "bag of words", baselines.bag_of_words(rows, labels, classes, asked)
    if pairs:
        fitted = baselines.overlap_classes(rows, labels, classes, asked)
        yield "overlap of tokens", fitted


def confusion_table(
    labels: np.ndarray, probabilities: np.ndarray, names_: tuple[str, ...]
) -> str:
    """Formats the examples of each class by the predicted class, at most SHOWN."""
    table = counts.confusion(labels, probabilities)[:SHOWN, :SHOWN]
    shown = [name[:12] for name in names_[:SHOWN]]
    width = max(6, *map(len, shown)) + 2
    head = "label".ljust(width) + "".join(name.rjust(width) for name in shown)
    lines = [
        name.ljust(width) + "".join(str(count).rjust(width) for count in row)
        for name, row in zip(shown, table.tolist())
    ]
    more = len(names_) - len(shown)
    return "\n".join([head, *lines, *([f"and {more} more classes"] if more else [])])


def describe_classes(labels: np.ndarray, predicted: np.ndarray) -> str:
    """Lists classes without examples; if there are none, the examples per class."""
    if predicted.ndim == 1:
        return ": the labels or the predictions are all equal"
    held = counts.actual(labels, predicted.shape[1]).sum(0)
    absent = ", ".join(map(str, np.flatnonzero(held == 0)[:10]))
    return (
        f": no example of class {absent}" if absent else f": {held.tolist()} examples"
    )
