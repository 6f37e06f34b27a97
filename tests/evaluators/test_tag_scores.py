"""The evaluator tags, and metrics of spans, against stored values of seqeval."""

import itertools
import json
import types

import numpy as np
import pytest

from lm.data.sources import conll
from lm.data.sources.base import Record
from lm.evaluators import base, tags
from lm.metrics import spans
from lm.objectives import tagging

TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
LABELS = ("O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BI"))


@pytest.fixture(scope="module")
def reference(test_data):
    """The records of the reference file, and the expected values."""
    folder = test_data("ref_tag_f1")
    columns = {"words": 1, "tags": 2, "predicted": 3}
    source = conll.Source(files=str(folder / "predictions.conll"), columns=columns)
    expected = json.loads((folder / "expected.json").read_text())
    return [*source.records()], expected


class Stream(list):
    """The rows of one source, in order."""

    def locate(self, n):
        return 0, 0, n

    @property
    def indices(self):
        fields = {"record": [row["record"] for row in self]}
        return (types.SimpleNamespace(row=self.__getitem__, fields=fields),)


def functions():
    """A model whose predictions are its batches."""
    parts = dict.fromkeys(base.Functions.__dataclass_fields__)
    return base.Functions(**parts | {"predict": lambda b: (None, {"tags": b})})


def evaluate(records, tmp_path, **options):
    """Runs the evaluator with the predictions of the records, a row for each."""
    task = tagging.Objective(labels=LABELS, scheme="bio")
    rows = [
        {
            "record": n,
            "word": np.arange(len(record.fields["words"])),
            "read": np.ones(len(record.fields["words"])),
        }
        for n, record in enumerate(records)
    ]
    stream = Stream(rows)
    ids = {label: n for n, label in enumerate(LABELS)}
    most = max(len(row["word"]) for row in rows)
    predicted = np.zeros((len(rows) + 3, most), int)  # with padding rows
    for n, record in enumerate(records):
        for at, tag in enumerate(record.fields["predicted"]):
            predicted[n, at] = ids[tag]
    parts = dict.fromkeys(base.Examples.__dataclass_fields__)
    parts |= {"objective": task, "stream": stream, "rows": len(rows)}
    parts |= {"records": lambda: iter(records), "train_texts": lambda: iter(["the"])}
    parts["batches"] = lambda: iter(np.array_split(predicted, 3))
    notes = []
    out = base.Outputs(tmp_path / "samples" / "dev-1.txt", notes.append)
    evaluator = tags.Evaluator(**options)
    found = dict(evaluator.run(base.Examples(**parts), functions(), out))
    assert [*found] and {*found} == {*evaluator.yields(task)}
    return found, out.samples.read_text(), notes


@pytest.mark.parametrize(
    ("rule", "key"), [("conlleval", "default_as_conlleval"), ("strict", "strict_IOB2")]
)
def test_scores_equal_those_of_the_reference(reference, tmp_path, rule, key):
    records, expected = reference
    found, text, notes = evaluate(records, tmp_path, scheme=rule, types=True)
    wanted = expected[key]
    for name in ("precision", "recall", "macro_f1", "weighted_f1"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-12)
    assert found["f1"] == pytest.approx(wanted["micro_f1"], abs=1e-12)
    for kind, scores in wanted["per_type"].items():
        assert found[f"f1_{kind}"] == pytest.approx(scores["f1-score"], abs=1e-12)
    assert found["accuracy"] == pytest.approx(expected["token_accuracy"], abs=1e-12)
    assert found["f1_low"] < found["f1"] - 0.03 < found["f1"] + 0.03 < found["f1_high"]
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    if rule == "conlleval":
        surface = expected["surface_forms"]["f1"]
        assert found["surface_f1"] == pytest.approx(surface, abs=1e-12)
        assert "gold:197|predicted:227|correct:102" in notes[-1]
        heads = "type           precision  recall  f1      gold  predicted"
        assert f"\n# {heads}\n" in text and "\t" not in text
        assert "person         0.6207     0.5070  0.5581  71    58\n" in text


def test_words_that_the_training_data_lack(reference, tmp_path):
    records, _ = reference
    found, text, _ = evaluate(records, tmp_path, samples=0, rows=1)
    pairs = [
        (right == guess)
        for record in records
        for word, right, guess in zip(*map(record.fields.get, FIELDS))
        if word != "the"
    ]
    assert found["unknown_accuracy"] == pytest.approx(np.mean(pairs))
    first = zip(*map(records[0].fields.get, FIELDS))
    shown = text.rpartition("\n\n")[2].splitlines()
    assert [line.split() for line in shown] == [*map(list, first)]
    assert len({line.index(line.split()[1], 1) for line in shown}) == 1


def test_windows_are_put_together_and_an_incomplete_sentence_is_left_out():
    """Two sentences of two rows each; a limit of three rows leaves one sentence."""
    record = Record({"words": ("a", "b", "c"), "tags": ("O", "B-x", "O")}, "x:1")
    halves = {"word": [0, 1], "read": [1, 0]}, {"word": [1, 2], "read": [1, 1]}
    rows = [half | {"record": n} for n in range(2) for half in halves]
    parts = dict.fromkeys(base.Examples.__dataclass_fields__)
    parts |= {"objective": tagging.Objective(labels=("O", "B-x")), "rows": 4}
    parts |= {"stream": Stream(rows), "records": lambda: itertools.repeat(record)}
    tags_of_rows = np.asarray([[1, 0], [1, 0], [0, 1], [0, 1]])
    parts["batches"] = lambda: iter([tags_of_rows])
    model = functions()
    found = [*tags.read(base.Examples(**parts), model)]
    assert [s.predicted for s in found] == [["B-x", "B-x", "O"], ["O", "O", "B-x"]]
    assert [s.hits for s in found] == [2, 1]
    limited = base.Examples(**parts | {"rows": 3})
    assert [s.predicted for s in tags.read(limited, model)] == [["B-x", "B-x", "O"]]


FIELDS = ("words", "tags", "predicted")


def test_nothing_to_be_found_and_nothing_found():
    nothing = spans.count([[], []], [[], []])
    assert spans.micro(nothing) == spans.Score(0.0, 0.0, 0.0)
    assert spans.macro(nothing) == spans.weighted(nothing) == 0.0
    only = spans.count([[]], [[("x", 0, 1)]])
    assert spans.by_type(only) == {"x": spans.Score(0.0, 0.0, 0.0)}
    perfect = spans.count([[("x", 0, 1)]] * 5, [[("x", 0, 1)]] * 5)
    assert {*spans.resampled(perfect, 50, 0).values()} == {(1.0, 1.0)}


def test_the_interval_has_the_share_of_the_samples():
    """The F1 of one of two kinds of sentences is that of a binomial share."""
    gold = [[("x", 0, 1)]] * 400
    counts = spans.count(gold, gold[:100] + [[("y", 0, 1)]] * 300)
    low, high = spans.resampled(counts, 4000, 1)["f1"]
    spread = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - spread, abs=0.006)
    assert high == pytest.approx(0.25 + spread, abs=0.006)


def test_intervals_are_of_the_scores_of_drawn_sentences():
    """Precision, recall, F1 and its means, by the functions that score a set."""
    rng = np.random.default_rng(0)
    kinds = ("x", "y", "z")

    def some():
        ends = np.flatnonzero(rng.random(6) < 0.5).tolist()
        return [(str(rng.choice(kinds)), at, at + 1) for at in ends]

    gold, guess = [some() for _ in range(12)], [some() for _ in range(12)]
    counts, drawn = spans.count(gold, guess), np.random.default_rng(4)
    scores = []
    for _ in range(300):
        rows = drawn.integers(12, size=12)
        parts = (counts.gold[rows], counts.predicted[rows], counts.correct[rows])
        kept = (parts[0] + parts[1]).sum(0) > 0
        own = spans.Counts(kinds, *parts)
        seen = spans.Counts(
            tuple(k for k, there in zip(kinds, kept) if there),
            *(part[:, kept] for part in parts),
        )
        micro = spans.micro(own)
        scores.append([micro.precision, micro.recall, micro.f1])
        scores[-1] += [spans.macro(seen), spans.weighted(seen)]
    lows, highs = np.quantile(scores, [0.05, 0.95], axis=0)
    found = spans.resampled(counts, 300, 4, level=0.9)
    names = ["precision", "recall", "f1", "macro_f1", "weighted_f1"]
    assert [*found] == names
    np.testing.assert_allclose([found[n].low for n in names], lows)
    np.testing.assert_allclose([found[n].high for n in names], highs)
