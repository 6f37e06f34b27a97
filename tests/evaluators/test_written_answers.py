"""Generated answers: prompts, stop texts, what counts as right; a run that answers."""

import json
from unittest import mock

import pytest

from lm import evaluate
from lm import run as runs
from lm.errors import ConfigError, DataError
from lm.evaluators import answers, base
from tests import tiny
from tests.evaluators.test_choices import write
from tests.test_generate import settings

SUMS = [{"sum": f"{n}+1", "answers": [str(n + 1), f"{n + 1}.0"]} for n in range(5)]


def test_the_share_of_right_answers(tmp_path):
    file = write(tmp_path / "a.jsonl", SUMS)
    evaluator = answers.Evaluator(
        file=file, template="{sum} =", shots=1, separator="\n", stop=("\n", "#")
    )
    said = [" 1", "2.0 ", " three", "the  4", " 5"]
    asked = []

    def written(prompts, settings, stop):
        assert (settings.max_tokens, settings.temperature) == (32, 0)
        assert stop == ("\n", "#")
        asked.extend(prompts)
        return said

    functions = mock.Mock(spec=base.Functions, write=written)
    out = base.Outputs(tmp_path / "samples" / "x-0.txt", print)
    found = dict(evaluator.run(None, functions, out))
    assert {*found} == {*evaluator.yields(None)}
    assert found["exact_match"] == 3 / 5
    assert found["exact_match_low"] < 0.6 < found["exact_match_high"]
    solved = {f"{n}+1 = {n + 1}" for n in range(5)}
    for number, prompt in enumerate(asked):
        example, own = prompt.text.split("\n")
        assert own == f"{number}+1 =" and example in solved
        assert not example.startswith(own)
        assert prompt.where == f"{file}:{number + 1}"
    rows = (tmp_path / "samples" / "x-0.jsonl").read_text().splitlines()
    assert [json.loads(row)["right"] for row in rows] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_what_is_an_answer_and_when_it_is_right():
    plain = answers.Evaluator()
    assert plain.matches(" a  b\n", ("a b",)) and not plain.matches("A b", ("a b",))
    words = answers.Evaluator(normalise="words")
    assert words.matches(" The cat!", ("cat",)) and not words.matches("cats", ("cat",))
    number = answers.Evaluator(pattern=r"#### (-?\d+)")
    assert number.extract("1\n#### 3 or\n#### -4.") == "-4"
    assert number.extract("4") is None
    assert answers.Evaluator(pattern=r"\d+").extract("7 and 8") == "8"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"context": "a"}, "answers=nothing"),
        ({"context": "a", "answers": []}, "answers=[]"),
        ({"context": "a", "answers": ["b", True]}, "answers=['b', True]"),
        ({"context": "a", "answers": {"b": 1}}, "answers={'b': 1}"),
        ({"text": "a", "answers": "b"}, "the fields 'text', 'answers'"),
    ],
)
def test_refused_items(tmp_path, row, what):
    file = write(tmp_path / "a.jsonl", [{"context": "c", "answers": 3}, row])
    with pytest.raises(DataError) as error:
        answers.Evaluator(file=file).items(file)
    assert error.value.where == f"{file}:2" and what in error.value.found


def test_refused_fields(tmp_path):
    file = write(tmp_path / "a.jsonl", SUMS)
    for fields, line in (
        ({"stop": ("",)}, r"evals\.x\.stop"),
        ({"pattern": "("}, r"evals\.x\.pattern.*unterminated"),
        ({"pattern": "(a)(b)"}, r"evals\.x\.pattern.*several groups"),
    ):
        section = {"evaluator": "answers", "file": file, "data": tiny.tree()["data"]}
        with pytest.raises(ConfigError, match=line):
            runs.check(settings(evals={"x": section | fields}))


@pytest.mark.slow
def test_a_run_gives_the_answer_that_it_has_learnt(tmp_path, capsys):
    """By bytes; the answer ends at the stop text though the text goes on."""
    facts = {"a": "red", "b": "red", "c": "blue"}
    rows = [{"name": name, "answers": colour} for name, colour in facts.items()]
    file = write(tmp_path / "a.jsonl", rows)
    lines = [{"text": f"{name} is red; so"} for name in facts]
    data = {"sources": [{"name": "memory", "items": lines * 4}], "pack": False}
    task = {"evaluator": "answers", "file": file, "template": "{name} is"}
    task |= {"stop": (";",), "max_tokens": 9, "every": 60, "batch_size": 2}
    config = settings(
        steps=60,
        data=data,
        optim={"name": "adamw", "lr": 1e-2, "warmup": 2, "schedule": "constant"},
        evals={"x": task | {"data": data}},
        checkpoint={"every": 60, "keep_last": 1},
    )
    assert tiny.run(config, tmp_path / "run") == 0
    found = tiny.rows(tmp_path / "run")[-1]
    samples = (tmp_path / "run/samples/x-60.jsonl").read_text().splitlines()
    generated = [json.loads(row)["generated"] for row in samples]
    assert generated == [" red"] * 3
    assert found["x/exact_match"] == 2 / 3
    with tiny.some_devices(config):
        flags = ["--config.evals.x.template=so so so {name} is so so {name} is"]
        flags += ["--config.evals.x.max_tokens=30"]
        assert evaluate.main([f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert "x: prompts too long, cut: 3" in capsys.readouterr().err
