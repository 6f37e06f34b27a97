"""SQuAD's files: what a record has, and what is refused, in one line."""

import gzip
import json

import pytest

from lm.data.sources.squad import Source
from lm.errors import DataError
from lm.main import main

CONTEXT = "The Nile is long."


def question(id="q0", text="Nile", start=4, **own):
    answers = [{"text": text, "answer_start": start}]
    return {"id": id, "question": "What?", "answers": answers} | own


def file(folder, *questions, name="a.json"):
    paragraph = {"context": CONTEXT, "qas": [*questions]}
    tree = {"version": "v2.0", "data": [{"title": "Nile", "paragraphs": [paragraph]}]}
    (folder / name).write_text(json.dumps(tree))
    return str(folder / name)


def test_a_record_of_each_version(tmp_path):
    path = file(
        tmp_path,
        question(
            answers=[{"text": t, "answer_start": s} for t, s in (("Nile", 4),) * 2]
        ),
        question("q1", answers=[], is_impossible=True, plausible_answers=[{"text": 1}]),
    )
    shared = {"title": "Nile", "context": CONTEXT, "question": "What?"}
    wanted = [
        shared | {"id": "q0", "answers": ("Nile", "Nile"), "starts": (4, 4)},
        shared | {"id": "q1", "answers": ("",), "starts": (0,)},
    ]
    records = [*Source(files=path).records()]
    assert [record.fields for record in records] == wanted
    assert records[1].where == f"{path}:data.0.paragraphs.0.qas.1"
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    assert [r.fields for r in Source(files=str(packed)).records()] == wanted


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({"answers": []}, "0 answers and is_impossible false"),
        ({"is_impossible": True}, "1 answers and is_impossible true"),
        ({"is_impossible": "no"}, "is_impossible 'no'"),
        ({"id": 7}, "7 as 'id'"),
        ({"question": None}, "None as 'question'"),
        ({"answers": {"text": ["Nile"]}}, "keys 'id', 'question'"),
        ({"answers": [{"text": "Nile"}]}, "answer_start None"),
        ({"answers": ["Nile"]}, "nothing as 'text'"),
        ({"id": "q1"}, "id 'q1', also that of "),
    ],
)
def test_a_bad_question_is_named_and_the_others_are_read(tmp_path, own, found):
    path = file(tmp_path, question("q1"), question(**own), question("q2"))
    items = [*Source(files=path).read()]
    bad = [item for item in items if isinstance(item, DataError)]
    assert [r.fields["id"] for r in items if r not in bad] == ["q1", "q2"]
    (error,) = bad
    assert error.where.startswith(f"{path}:data.0.paragraphs.0.qas.1")
    wanted = "dict, expected 'answers'" if found.startswith("keys") else found
    assert wanted in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"data": [', ":1: found broken JSON"),
        ('{"data": [],\n "data": []}', "the key 'data' stands twice"),
        ("[1]", "found list, expected 'data'"),
        ('{"rows": []}', "found keys 'rows', expected 'data'"),
        ('{"data": [{"title": "x"}]}', "data.0: found keys 'title'"),
        ('{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "nothing as 'context'"),
        ('{"data": []}', "found no records"),
        ("\xff", "byte 0xff at column 1"),
    ],
)
def test_a_broken_file_ends_the_command_in_one_line(tmp_path, capsys, text, found):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    config = f"--config=configs/squad.py:dir={tmp_path},scratch,train=a.json,dev=a.json"
    assert main([config, f"--workdir={tmp_path / 'run'}"]) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error[data] {path}") and found in line


def test_an_answer_that_is_not_there(tmp_path, capsys):
    file(tmp_path, question(), question("q1", start=5))
    config = f"--config=configs/squad.py:dir={tmp_path},scratch,train=a.json,dev=a.json"
    tokenizer = "--config.tokenizer={'name':'word','special':{}}"
    assert main([config, tokenizer, f"--workdir={tmp_path / 'run'}"]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "qas.1: found the answer 'Nile' at character 5" in line
    assert "the context has 'ile '" in line
