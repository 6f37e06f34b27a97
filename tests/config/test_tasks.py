"""Task files: JSON beside the items; what is wrong in one is named with its line."""

import json
import re

import pytest

from lm.config import tasks
from lm.errors import ConfigError


def test_a_folder_of_tasks(tmp_path):
    (tmp_path / "colours.json").write_text(json.dumps({"options": ["red", "blue"]}))
    other = {"evaluator": "answers", "file": "x/y.jsonl", "shots": 2, "stop": ["."]}
    (tmp_path / "sums.json").write_text(json.dumps(other))
    (tmp_path / "notes.txt").write_text("no task")
    found = tasks.read_tasks(str(tmp_path))
    file = str(tmp_path / "colours.jsonl")
    first = {"evaluator": "choices", "file": file, "options": ["red", "blue"]}
    assert found == {
        "colours": first,
        "sums": other | {"file": str(tmp_path / "x/y.jsonl")},
    }


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (
            '{"template": "{q}",\n "shot": 3}',
            2,
            "field 'shot'.*mean 'shots'",
        ),
        ('{"shots": "three"}', 1, "found 'three'"),
        ('{\n\n"shots": -1}', 3, "found -1"),
        ('{"evaluator":\n "choice"}', 1, "evaluator 'choice', expected 'choices'"),
        ('{"evaluator": "mean"}', 1, "evaluator 'mean'"),
        ('{"evaluator": "lm.evaluators.answers"}', 1, "'lm.evaluators.answers'"),
        ('{"evaluator": 3}', 1, "evaluator 3"),
        ('{"shots": 3', None, "no JSON"),
        ("[1]", None, "a JSON object"),
    ],
)
def test_a_wrong_task_file(tmp_path, text, line, what):
    (tmp_path / "t.json").write_text(text)
    place = re.escape(str(tmp_path / "t.json")) + (f":{line}" if line else "")
    with pytest.raises(ConfigError, match=f"^{place}: .*{what}"):
        tasks.read_tasks(str(tmp_path))


def test_no_task_and_a_name_that_is_none(tmp_path):
    for folder, what in (
        (tmp_path, "no task file"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(ConfigError, match=what):
            tasks.read_tasks(str(folder))
    (tmp_path / "a.b.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"'a\.b'"):
        tasks.read_tasks(str(tmp_path))
