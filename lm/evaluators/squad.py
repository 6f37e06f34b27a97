"""Scores answers cut from contexts as the official programs of SQuAD do."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.data.answers import Found
from lm.data.sources.base import Record
from lm.evaluators import base
from lm.host import storage
from lm.metrics import baselines, squad, statistics
from lm.objectives.base import Asked, Objective

BOUNDS = {
    "level": "(0, 1)",
    "resamples": "[0, 100000]",
    "rows": "[0, 100000]",
}
CHANGEABLE = ("level", "resamples", "rows", "write")

METRICS = {"exact_match": squad.exact_match, "f1": squad.f1}


class Question(NamedTuple):
    """A question of the set with its answers, and what the model says."""

    id: str
    text: str
    context: str
    answers: list[str]
    found: Found


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Exact match and F1 of the answers to the questions of a set, in per cent.

    An answer counts by the reference that it is nearest to. A question of which
    `too_long` skips the context has no row and is no part of the set. Yields

        exact_match, f1                 with _low and _high, the bounds of the bootstrap
                                        interval over questions

    and, where `objective.null_threshold` lets questions have no answer (NaN where the
    set has none such),

        has_answer_exact_match, ..._f1  of the questions that have an answer, with
                                        _low and _high
        no_answer_exact_match, ..._f1   of those that have none, with _low and _high
        best_exact_match, best_f1       at the best threshold for this set
        best_exact_match_threshold, ... that `null_threshold`

    The samples have questions with their answers and the predicted ones; what a plain
    method reaches stands in the log, once.

    Attributes:
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
      plain_methods: whether a plain method is held against the model: the first name or
        number in the sentence most like the question.
      rows: questions in the file of samples; None writes all.
      write: whether the predictions are written in the official form, to
        `predictions/<evaluation>-<step>.json`, {id: answer}; beside it `-nbest.json`,
        {id: candidates}, and, with a threshold, `-null_odds.json`, {id: odds}.
    """

    level: float = 0.95
    resamples: int = 1000
    plain_methods: bool = True
    rows: int | None = 20
    write: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"extracts"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        task: Any = objective  # with "extracts"
        ends = ("", "_low", "_high") if self.resamples else ("",)
        names = [metric + end for metric in METRICS for end in ends]
        if task.null_threshold is not None:
            for metric in METRICS:
                names += [f"has_answer_{metric}{end}" for end in ends]
                names += [f"no_answer_{metric}{end}" for end in ends]
                names += [f"best_{metric}", f"best_{metric}_threshold"]
        return tuple(names)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        task: Any = examples.objective
        questions = [*read(examples, model)]
        answered = np.asarray([any(q.answers) for q in questions])
        odds = np.asarray([q.found.null_odds for q in questions])
        if np.isnan(odds).any():
            out.note("the model's predictions are no numbers: nor are the metrics")
            yield from ((name, math.nan) for name in self.yields(task))
            return
        for metric in METRICS:
            scores = score(metric, [q.found.answer.text for q in questions], questions)
            yield metric, float(scores.mean())
            if self.resamples:
                yield from self._interval(metric, scores)
            if task.null_threshold is None:
                continue
            for name, part in (("has_answer", answered), ("no_answer", ~answered)):
                if not part.any():
                    out.note(f"{name}_{metric} is not defined: no such question")
                mean = float(scores[part].mean()) if part.any() else math.nan
                yield f"{name}_{metric}", mean
                if self.resamples:
                    yield from self._interval(f"{name}_{metric}", scores[part])
            given = score(metric, [q.found.best.text for q in questions], questions)
            withheld = score(metric, [""] * len(questions), questions)
            best = squad.best_threshold(given, withheld, odds)
            yield f"best_{metric}", best.score
            yield f"best_{metric}_threshold", best.threshold
        if jax.process_index() == 0:
            shown = map(describe, questions[: self.rows])
            storage.write_text(out.samples, "\n".join(shown))
            if self.write:
                write(questions, task.null_threshold is not None, out)
        if self.plain_methods and not examples.memo.get("baseline"):
            examples.memo["baseline"] = True
            note_baseline(questions, out)

    def _interval(self, metric: str, scores: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yields the bounds of the bootstrap interval of a mean; NaN without scores."""
        yield from statistics.bootstrap(
            lambda numbers: float(scores[numbers].mean()),
            len(scores),
            resamples=self.resamples,
            level=self.level,
            seed=self.seed,
        ).named(metric)


def score(
    metric: str, answers: Sequence[str], questions: Sequence[Question]
) -> np.ndarray:
    """Returns the score of each answer in per cent, (questions,)."""
    function = METRICS[metric]
    pairs = zip(answers, questions, strict=True)
    found = [squad.best_of(function, text, q.answers) for text, q in pairs]
    return 100 * np.asarray(found)


def note_baseline(questions: Sequence[Question], out: base.Outputs) -> None:
    """Notes what a plain method reaches on the set."""
    guesses = [baselines.nearest_name(q.text, q.context) for q in questions]
    means = {name: score(name, guesses, questions).mean() for name in METRICS}
    figures = "  ".join(f"{name} {value:.2f}" for name, value in means.items())
    what = "the first name or number in the sentence most like the question"
    out.note(f"{out.samples.stem.rpartition('-')[0]} by {what}: {figures}")


def read(examples: base.Examples, model: base.Functions) -> Iterator[Question]:
    """Yields the questions of a set, each put together from its rows.

    Where the set is limited to some rows, a question with rows beyond is left out.
    """
    task: Any = examples.objective
    stream = examples.stream
    said = predictions(examples, model)
    rows: list[Asked] = []
    before: tuple[tuple[int, int], Record] | None = None

    def question() -> Question:
        assert before is not None
        (_, number), record = before
        return Question(
            str(record.fields.get("id", number)),
            str(record.fields[task.question]),
            str(record.fields[task.context]),
            [answer.text for answer in task.reader.answers_of(record)],
            task.extract(record, rows),
        )

    for number, record in enumerate(examples.records()):
        source, _, at = stream.locate(number)
        row = stream.indices[source].row(at)
        place = (source, int(row["record"]))
        if before is not None and place != before[0]:
            yield question()
            rows = []
        rows.append(Asked(row, {}, said[number]))
        before = place, record
    if before is not None and before[0] != examples.next_place:
        yield question()


def predictions(
    examples: base.Examples, model: base.Functions
) -> list[dict[str, np.ndarray]]:
    """Returns the predictions for each row in order, without padding rows."""
    found: list[dict[str, np.ndarray]] = []
    for batch in examples.batches(by_length=True):
        _, said = model.predict(batch)
        arrays = {name: np.asarray(array) for name, array in said.items()}
        size = len(arrays["null_scores"])
        found += [{k: array[n] for k, array in arrays.items()} for n in range(size)]
    found = found[: examples.rows]
    order = examples.stream.from_longest(len(found))
    return found if order is None else [found[n] for n in np.argsort(order)]


def describe(question: Question) -> str:
    """Formats a question with its answers and the predicted one."""
    answers = dict.fromkeys(question.answers)
    found = question.found.answer
    right = squad.best_of(squad.exact_match, found.text, question.answers)
    lines = {
        "question": question.text,
        "answers": " | ".join(answers),
        "predicted": f"{found.text} ({found.probability:.3f})",
    }
    shown = "".join(f"{name}: {value}\n" for name, value in lines.items())
    return ("" if right else "wrong\n") + shown


def write(questions: Sequence[Question], odds: bool, out: base.Outputs) -> None:
    """Writes the predictions in the form of the official programs.

    Args:
      odds: whether those of having no answer are written too.
    """
    found = {q.id: q.found for q in questions}
    files: dict[str, dict[str, Any]] = {
        "": {id: each.answer.text for id, each in found.items()},
        "-nbest": {
            id: [candidate.as_json() for candidate in each.candidates]
            for id, each in found.items()
        },
    }
    if odds:
        files["-null_odds"] = {id: each.null_odds for id, each in found.items()}
    for end, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        place = out.predictions.with_name(f"{out.predictions.stem}{end}.json")
        storage.write_text(place, text + "\n")
