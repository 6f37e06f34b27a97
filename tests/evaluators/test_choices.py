"""Multiple choice: templates, shots, picks by each way, and the reference's picks."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lm import convert, evaluations
from lm import run as runs
from lm.config import resolve
from lm.errors import ConfigError, DataError
from lm.evaluators import base, choices
from lm.evaluators.likelihood import Score
from tests import tiny


def score_of(total, tokens, best=False):
    each = np.full(tokens, total / max(tokens, 1))
    return Score([7] * tokens, each, np.full(tokens, best))


def test_each_way_has_its_own_pick():
    """Scores made so that another choice is the best by each way."""
    texts = ["ab", "äöüß", "abcdefgh", "", "abc", "abcd"]
    scores = [
        score_of(-3.0, 2),  # the sum
        score_of(-7.0, 8),  # per byte: 7 / 8; per token: 7 / 8
        score_of(-6.0, 4),  # per character: 6 / 8
        score_of(0.0, 0),  # empty: never
        score_of(-4.0, 6),  # per token: 4 / 6
        score_of(-9.0, 3),  # less the -20 without context
    ]
    without = [-1.0, -1.0, -1.0, 0.0, -1.0, -20.0]
    found = choices.picks(texts, scores, without)
    assert found["sum"] == 0 and found["per_token"] == 4 and found["per_char"] == 2
    assert found["unconditional"] == 5
    assert choices.picks(["é", "ab"], [score_of(-3.0, 1)] * 2, [0, 0]) == {
        "sum": 0,  # the first of equal ones
        "per_token": 0,
        "per_byte": 0,
        "per_char": 1,
        "unconditional": 0,
    }


def prompts_of(evaluator, items):
    before = evaluator.examples(items)
    return [shown + item.context for shown, item in zip(before, items)]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


QUESTIONS = [
    {"question": f"Q{n}?", "choices": ["yes", "no"], "gold": n % 2} for n in range(6)
]


def test_templates_and_shots(tmp_path):
    file = write(tmp_path / "a.jsonl", QUESTIONS)
    evaluator = choices.Evaluator(
        file=file,
        template="{question} A:",
        choice=" {choice}",
        description="Answer.",
        separator="|",
        shots=2,
        seed=3,
    )
    items = evaluator.items(file)
    assert items[1].choices == (" yes", " no") and items[1].gold == 1
    prompts = prompts_of(evaluator, items)
    answers = {f"Q{n}? A:{' yes' if n % 2 == 0 else ' no'}" for n in range(6)}
    for number, prompt in enumerate(prompts):
        first, *shown, last = prompt.split("|")
        assert (first, last) == ("Answer.", f"Q{number}? A:")
        assert len({*shown}) == 2 and {*shown} <= answers
        assert not any(part.startswith(f"Q{number}?") for part in shown)
    assert prompts == prompts_of(evaluator, items)
    assert len({p.split("|", 1)[1].rsplit("|", 1)[0] for p in prompts}) > 2
    # The examples of an item are its own, however many items are evaluated.
    other = write(tmp_path / "b.jsonl", [{"question": "X?", "choices": ["no"]}])
    from_there = choices.Evaluator(
        file=file, template="{question}", shots=1, shots_file=other, separator="|"
    )
    assert prompts_of(from_there, items)[0] == "X?no|Q0? A:"
    by_text = choices.Evaluator(template="{question}", options=("a", "b"))
    item = by_text.item({"question": "Y?", "gold": "b"}, "x:1")
    assert item == choices.Item("x:1", "Y?", ("Y?", "Y?"), ("a", "b"), 1)


def test_fields_by_paths_and_a_blank_within_a_sentence():
    nested = choices.Evaluator(
        template="{q.stem} {q.tags.1}", choices="q.options", gold="key"
    )
    row = {"q": {"stem": "S", "tags": ["x", 7], "options": ["a", "b"]}, "key": "b"}
    item = nested.item(row, "x:1")
    assert (item.context, item.choices, item.gold) == ("S 7", ("a", "b"), 1)
    columns = choices.Evaluator(template="{goal}", options=("{one}", "{two}"))
    item = columns.item({"goal": "G", "one": "do", "two": "wait", "gold": 1}, "x:1")
    assert item.choices == ("do", "wait") and item.solved == "Gwait"
    blank = choices.Evaluator(template="{before} {choice}", choice=" {after}")
    row = {"before": "The cat and", "after": "slept.", "choices": ["he", "she"]}
    item = blank.item(row | {"gold": 1}, "x:1")
    assert item.contexts == ("The cat and he", "The cat and she")
    assert item.choices == (" slept.", " slept.")
    assert item.solved == "The cat and she slept."


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"context": "a", "choices": ["b", "c"]}, "gold=None"),
        ({"context": "a", "choices": ["b", "c"], "gold": 2}, "gold=2"),
        ({"context": "a", "choices": ["b", "c"], "gold": True}, "gold=True"),
        ({"context": "a", "choices": [], "gold": 0}, "choices="),
        ({"context": "a", "choices": "b", "gold": 0}, "choices='b'"),
        ({"text": "a", "choices": ["b", "c"], "gold": 0}, "the fields 'text'"),
        ({"context": ["a"], "choices": ["b", "c"], "gold": 0}, "the fields"),
    ],
)
def test_refused_items(tmp_path, row, what):
    file = write(tmp_path / "a.jsonl", [QUESTIONS[0] | {"context": "c"}, row])
    with pytest.raises(DataError) as error:
        choices.Evaluator(file=file).items(file)
    assert error.value.where == f"{file}:2" and what in error.value.found


def test_too_many_shots_and_no_file(tmp_path):
    file = write(tmp_path / "a.jsonl", QUESTIONS)
    evaluator = choices.Evaluator(file=file, template="{question}", shots=6)
    with pytest.raises(DataError, match="6 items, expected 7 or more"):
        evaluator.examples(evaluator.items(file))
    data = tiny.tree()["data"]
    for fields, line in (
        ({"file": "none"}, r"evals\.x\.file"),
        ({"file": file, "template": "{ question }"}, r"evals\.x\.template.*a field"),
    ):
        section = {"evaluator": "choices", "data": data} | fields
        with pytest.raises(ConfigError, match=line):
            runs.check(tiny.config(evals={"x": section}))


def test_figures_of_scores_that_are_known(tmp_path):
    """The model prefers the first choice with 1 nat a token, and is greedy there."""
    file = write(tmp_path / "a.jsonl", QUESTIONS[:5])
    evaluator = choices.Evaluator(file=file, template="{question}")

    def score(texts, settings):
        first = [text.text == "yes" for text in texts]
        made = [score_of(-1.0 if yes else -2.0, 1, best=yes) for yes in first]
        return [made[0]._replace(cut=9), *made[1:]]

    functions = mock.Mock(spec=base.Functions, score=score)
    notes: list[str] = []
    out = base.Outputs(tmp_path / "samples" / "x-0.txt", notes.append)
    found = dict(evaluator.run(None, functions, out))
    assert notes == ["x-0: contexts too long, cut at their left: 1"]
    assert {*found} == {*evaluator.yields(None)}
    assert found["accuracy_sum"] == found["gold_greedy"] == 3 / 5
    assert found["accuracy_sum_stderr"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert found["accuracy_sum_low"] < 0.6 < found["accuracy_sum_high"]
    assert found["gold_perplexity"] == pytest.approx(np.exp(7 / 5))
    assert found["gold_greedy_low"] == found["accuracy_sum_low"]
    rng, means = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = rng.integers(5, size=5)
        means.append(np.mean(1.0 + drawn % 2))
    ends = found["gold_perplexity_low"], found["gold_perplexity_high"]
    assert ends == pytest.approx(np.exp(np.quantile(means, [0.025, 0.975])))
    rows = (tmp_path / "samples" / "x-0.jsonl").read_text().splitlines()
    assert [json.loads(row)["picks"]["sum"] for row in rows] == [0] * 5


@pytest.mark.slow
def test_the_picks_of_the_reference(test_data, tmp_path):
    reference = test_data("ref_loglikelihood")
    workdir, file = tmp_path / "run", reference / "multiple_choice.jsonl"
    assert (
        convert.main([f"--from=hf:{reference / 'gpt2_tiny'}", f"--workdir={workdir}"])
        == 0
    )
    config = resolve.of_run(workdir)
    evals = {"x": {"evaluator": "choices", "file": str(file), "data": config.data}}
    config = resolve.resolve(json.loads(json.dumps(config | {"evals": evals})))
    with tiny.some_devices(tiny.config(evals={})):
        opened = runs.open_run(workdir, config=config, note=lambda line: None)
    with opened.on_mesh():
        opened_evals = evaluations.open_evaluators(
            opened.config, workdir, opened.corpus, opened.program
        )
        found = opened_evals["x"](opened.params, 0)
    expected = json.loads((reference / "expected.json").read_text())["accuracy"]
    wanted = [json.loads(line) for line in file.read_text().splitlines()]
    rows = (workdir / "samples" / "x-0.jsonl").read_text().splitlines()
    for row, item in zip(map(json.loads, rows), wanted, strict=True):
        names = {"unconditional": "mutual_information"}
        for way, pick in row["picks"].items():
            if way == "unconditional" and not item["context"]:
                continue  # All differences are 0; the reference's are rounding.
            assert pick == item["picks"][names.get(way, way)], (row, way)
        assert row["greedy"] == [each["greedy"] for each in item["expected"]]
        assert row["tokens"] == [each["tokens"] for each in item["expected"]]
        expected_logs = [each["loglikelihood"] for each in item["expected"]]
        np.testing.assert_allclose(row["log_probs"], expected_logs, atol=1e-4)
        np.testing.assert_allclose(
            row["unconditional"], item["unconditional"], atol=1e-4
        )
    for way in choices.WAYS:
        wanted_share = expected[{"unconditional": "mutual_information"}.get(way, way)]
        assert found[f"x/accuracy_{way}"] == pytest.approx(wanted_share), way
