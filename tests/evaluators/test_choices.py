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
    prompts = evaluator.prompts(items)
    answers = {f"Q{n}? A:{' yes' if n % 2 == 0 else ' no'}" for n in range(6)}
    for number, prompt in enumerate(prompts):
        first, *shown, last = prompt.split("|")
        assert (first, last) == ("Answer.", f"Q{number}? A:")
        assert len({*shown}) == 2 and {*shown} <= answers
        assert not any(part.startswith(f"Q{number}?") for part in shown)
    assert prompts == evaluator.prompts(items)
    assert len({p.split("|", 1)[1].rsplit("|", 1)[0] for p in prompts}) > 2
    # The examples of an item are its own, however many items are evaluated.
    other = write(tmp_path / "b.jsonl", [{"question": "X?", "choices": ["no"]}])
    from_there = choices.Evaluator(
        file=file, template="{question}", shots=1, shots_file=other, separator="|"
    )
    assert from_there.prompts(items)[0] == "X?no|Q0? A:"
    by_text = choices.Evaluator(template="{question}", options=("a", "b"))
    row = {"question": "Y?", "gold": "b"}
    assert by_text._item(row, "x:1") == ("x:1", "Y?", ("a", "b"), 1)


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
        evaluator.prompts(evaluator.items(file))
    config = tiny.config(
        evals={
            "x": {"evaluator": "choices", "file": "none", "data": tiny.tree()["data"]}
        }
    )
    with pytest.raises(ConfigError, match=r"evals\.x\.file"):
        runs.check(config)


def test_figures_of_scores_that_are_known(tmp_path):
    """The model prefers the first choice with 1 nat a token, and is greedy there."""
    file = write(tmp_path / "a.jsonl", QUESTIONS[:5])
    evaluator = choices.Evaluator(file=file, template="{question}")

    def score(texts, settings):
        first = [text.text == "yes" for text in texts]
        return [score_of(-1.0 if yes else -2.0, 1, best=yes) for yes in first]

    functions = mock.Mock(spec=base.Functions, score=score)
    out = base.Outputs(tmp_path / "samples" / "x-0.txt", print)
    found = dict(evaluator.run(None, functions, out))
    assert {*found} == {*evaluator.yields(None)}
    assert found["accuracy_sum"] == found["gold_greedy"] == 3 / 5
    assert found["accuracy_sum_stderr"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert found["accuracy_sum_low"] < 0.6 < found["accuracy_sum_high"]
    assert found["gold_perplexity"] == pytest.approx(np.exp(7 / 5))
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
        expected_logs = [each["loglikelihood"] for each in item["expected"]]
        np.testing.assert_allclose(row["log_probs"], expected_logs, atol=1e-4)
        np.testing.assert_allclose(
            row["unconditional"], item["unconditional"], atol=1e-4
        )
    assert found["x/accuracy_per_char"] == expected["per_char"]
    assert found["x/accuracy_unconditional"] == expected["mutual_information"]
