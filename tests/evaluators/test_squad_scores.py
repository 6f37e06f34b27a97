"""The evaluator squad: windows joined, limits, order, files, what is undefined."""

import json
import math
import types

import numpy as np
import pytest

from lm.data.sources.base import Record
from lm.evaluators import base, squad
from lm.objectives.span_qa import Objective

# Two windows of two words each, [CLS] question [SEP] before them: places 3 and 4.
CONTEXT = "red fox big dog"
HALVES = (
    {"begins": [0, 4], "ends": [3, 7], "read": [1, 1]},
    {"begins": [8, 12], "ends": [11, 15], "read": [1, 1]},
)


class Stream(list):
    """The rows of one source, in order; `order` is that of the batches."""

    order = None

    def locate(self, n):
        return 0, 0, n

    @property
    def indices(self):
        fields = {"record": [row["record"] for row in self]}
        return (types.SimpleNamespace(row=self.__getitem__, fields=fields),)

    def from_longest(self, rows):
        return self.order


def record(n, *answers):
    starts = tuple(CONTEXT.index(answer) for answer in answers)
    fields = {"question": "which", "context": CONTEXT, "id": f"q{n}"}
    return Record(fields | {"answers": answers, "starts": starts}, f"x:{n}")


def rows(questions):
    made = []
    for n in range(questions):
        for half in HALVES:
            arrays = {name: np.asarray(values) for name, values in half.items()}
            made.append(arrays | {"record": n, "pieces": [[7], [8, 9]]})
    return Stream(made)


def said(*scores):
    """Of each row the score of its two words, each and both, and of [CLS]."""
    spans = np.asarray([[(3, 3), (4, 4), (3, 4)]] * len(scores))
    values = np.asarray(scores, float)
    return {
        "starts": spans[..., 0],
        "ends": spans[..., 1],
        "scores": values[:, :3],
        "null_scores": values[:, 3],
    }


RECORDS = (record(0, "fox"), record(1, "red fox", "big dog"), record(2, ""))
SCORES = (
    # first window, second window: word, word, both, [CLS]
    (1, 5, 2, 0), (0, 4, 0, -1),  # fox, odds -6
    (1, 1, 0, 9), (6, 3, 2, 8),   # big, odds 2
    (0, 1, 0, 3), (0, 0, 0, 2),   # fox, odds 1
)  # fmt: skip


def evaluate(folder, records=RECORDS, scores=SCORES, *, limit=None, order=None, **own):
    stream = rows(len(records))
    stream.order = order
    task = Objective(null_threshold=own.pop("threshold", None))
    shown = [scores[n] for n in order] if order is not None else [*scores]
    padded = [*shown, (99, 99, 99, 99)]  # a padding row
    halves = [said(*part) for part in (padded[:4], padded[4:]) if part]
    parts = dict.fromkeys(base.Examples.__dataclass_fields__)
    parts |= {"objective": task, "stream": stream, "memo": {}}
    parts["rows"] = limit or len(stream)
    parts["batches"] = lambda by_length: iter(halves)
    numbers = [row["record"] for row in stream][: parts["rows"]]
    parts["records"] = lambda: (records[n] for n in numbers)
    model = dict.fromkeys(base.Functions.__dataclass_fields__)
    model["predict"] = lambda batch: (None, batch)
    notes = []
    out = base.Outputs(folder / "samples" / "dev-7.txt", notes.append)
    evaluator = squad.Evaluator(**own)
    examples = base.Examples(**parts)
    found = dict(evaluator.run(examples, base.Functions(**model), out))
    assert {*found} == {*evaluator.yields(task)}
    return found, notes, folder


def test_windows_are_joined_and_the_nearest_answer_counts(tmp_path):
    """fox is right; big has F1 2/3 with "big dog"; the third has no answer."""
    found, notes, _ = evaluate(tmp_path)
    assert found["exact_match"] == pytest.approx(100 / 3)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert 0 <= found["f1_low"] < found["f1"] < found["f1_high"] <= 100
    assert len(notes) == 1 and notes[0].startswith("dev by the first name")
    text = (tmp_path / "samples" / "dev-7.txt").read_text()
    assert text.startswith("question: which\nanswers: fox\npredicted: fox (0.")
    assert (
        "wrong\nquestion: which\nanswers: red fox | big dog\npredicted: big (" in text
    )


@pytest.mark.parametrize("order", [(5, 4, 3, 2, 1, 0), (2, 0, 5, 1, 4, 3)])
def test_batches_sorted_by_length_change_nothing(tmp_path, order):
    plain, _, _ = evaluate(tmp_path)
    sorted_, _, _ = evaluate(tmp_path, order=np.asarray(order))
    assert sorted_ == plain


def test_a_question_that_the_limit_cuts_is_left_out(tmp_path):
    found, _, _ = evaluate(tmp_path, limit=3, resamples=0, plain_methods=False)
    assert found == {"exact_match": 100.0, "f1": 100.0}


def test_questions_without_an_answer(tmp_path):
    """At 0 the third is right and the second, whose odds are 2, is not answered."""
    found, _, folder = evaluate(
        tmp_path, threshold=0.0, resamples=0, write=True, plain_methods=False
    )
    assert found["exact_match"] == pytest.approx(200 / 3)
    assert found["has_answer_f1"] == found["has_answer_exact_match"] == 50
    assert found["no_answer_f1"] == found["no_answer_exact_match"] == 100
    # Answered as well, the second would have an F1 of 2/3, but the third would be
    # answered before it.
    assert found["best_f1"] == pytest.approx(200 / 3)
    assert found["best_f1_threshold"] == -6
    place = folder / "predictions"
    assert json.loads((place / "dev-7.json").read_text()) == {
        "q0": "fox",
        "q1": "",
        "q2": "",
    }
    odds = json.loads((place / "dev-7-null_odds.json").read_text())
    assert odds == {"q0": -6.0, "q1": 2.0, "q2": 1.0}
    best = json.loads((place / "dev-7-nbest.json").read_text())
    texts = [each["answer"] for each in best["q0"]]
    assert texts[:2] == ["fox", "dog"] and "" in texts
    assert sum(each["probability"] for each in best["q0"]) == pytest.approx(1, abs=1e-4)


def test_what_the_set_does_not_have_is_undefined(tmp_path):
    found, notes, _ = evaluate(
        tmp_path, RECORDS[:2], SCORES[:4], threshold=0.0, resamples=0
    )
    assert math.isnan(found["no_answer_f1"]) and found["has_answer_f1"] == 50
    assert "no_answer_f1 is not defined: no such question" in notes


def test_predictions_that_are_no_numbers(tmp_path):
    scores = [(math.nan,) * 4] * 6
    found, notes, _ = evaluate(tmp_path, RECORDS, scores, threshold=0.0)
    assert all(map(math.isnan, found.values())) and "no numbers" in notes[0]
