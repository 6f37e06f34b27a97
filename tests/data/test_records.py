"""Records beyond text: lists, dotted columns; and what is told of bad files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lm.data import files, labels, layouts
from lm.data.sources import csv, jsonl, memory, text, tfds
from lm.data.sources.base import Record
from lm.errors import DataError

SQUAD = {
    "id": 7,
    "question": "Where?",
    "answers": {"text": ["in Rome", "Rome"], "answer_start": [3, 6]},
    "words": ["Where", "?"],
    "tags": [0, 2],
    "known": [True, False],
    "a.b": "dotted",
}
COLUMNS = {
    "question": "question",
    "answer": "answers.text.0",
    "answers": "answers.text",
    "start": "answers.answer_start.1",
    "words": "words",
    "tags": "tags",
    "known": "known",
}
FOUND = {
    "question": "Where?",
    "answer": "in Rome",
    "answers": ("in Rome", "Rome"),
    "start": 6,
    "words": ("Where", "?"),
    "tags": (0, 2),
    "known": (True, False),
}


def arrays(value):
    """As tfds gives such a record: bytes and arrays."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict):
        return {key: arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        kind = object if isinstance(value[0], str) else None
        return np.asarray([arrays(item) for item in value], kind)
    return np.int64(value)


@pytest.mark.parametrize("kind", ["jsonl", "memory", "tfds"])
def test_lists_and_nested_columns(tmp_path, kind):
    if kind == "jsonl":
        (tmp_path / "x.jsonl").write_text(json.dumps(SQUAD) + "\n")
        made_of = jsonl.Source(
            files=str(tmp_path / "x.jsonl"), columns=COLUMNS, lists=True
        )
        made_of.check()
        (record,) = made_of.records()
    elif kind == "memory":
        (record,) = memory.Source(items=(SQUAD,), columns=COLUMNS, lists=True).records()
    else:
        record = tfds.record(arrays(SQUAD), COLUMNS, "x[0]", True)
    assert record.fields == FOUND
    assert layouts.list_of(record, "tags") == (0, 2)
    assert layouts.list_of(record, "start") == (6,)


def test_a_key_with_dots_of_its_own_comes_first():
    (record,) = memory.Source(items=(SQUAD,), columns=("a.b",)).records()
    assert record.fields == {"a.b": "dotted"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("answers.text.2", r"no 'answers.text.2', and 'answers' is a dict"),
        ("answers.texts.0", r"no 'answers.texts.0'"),
        ("answer.text", "columns 'id'"),
        ("answers", "'x' of type dict"),
        ("answers.text.-1", "no 'answers.text.-1'"),
        ("question.0", "no 'question.0', and 'question' is a str"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_record(path, found):
    items = (SQUAD, SQUAD | {"answers": {"text": [], "answer_start": []}})
    made_of = memory.Source(items=items, columns={"x": path}, lists=True)
    error = next(made_of.read())
    assert isinstance(error, DataError) and error.where == "memory[0]"
    with pytest.raises(DataError, match=found):
        raise error


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, "a"], "'x' of type str, expected a number"),
        ([1, float("nan")], "'x' = nan"),
        (2**70, "'x', a number of 71 bits"),
        ([2**70], "'x', a number of 71 bits"),
        (10**400, "'x', a number of 1329 bits"),
    ],
)
def test_numbers_that_are_none_are_refused(value, found):
    error = next(memory.Source(items=({"x": value},), lists=True).read())
    with pytest.raises(DataError, match=found):
        raise error


def test_a_label_that_is_a_list_is_refused():
    layout = layouts.Labelled(("text",), labels.Class("label", (), 2))
    with pytest.raises(DataError, match=r"label \(0, 1\)"):
        layout.texts(Record({"text": "a", "label": (0, 1)}, "x:1"))


# ---- C18: files whose records are all bad ----


@pytest.mark.parametrize(
    ("encoding", "guess", "content"),
    [
        ("gbk", "GB18030", "这是一个用来测试的中文句子。\n我们今天去北京。\n"),
        ("utf-16", "UTF-16", "plain words\nand more\n"),
        ("utf-16-le", "UTF-16LE", "plain words\nand more\n"),
        ("utf-16-be", "UTF-16BE", "plain words\nand more\n"),
        ("latin-1", "WINDOWS-1252", "Die Füße über dem Café\n"),
        ("cp1251", "WINDOWS-1251", "Привет, это русский текст\n"),
    ],
)
def test_C18_another_encoding_is_guessed(tmp_path, encoding, guess, content):
    path = tmp_path / "x.txt"
    path.write_bytes(content.encode(encoding))
    with pytest.raises(DataError) as caught:
        list(text.Source(files=str(path)).records())
    line = str(caught.value)
    assert f"iconv -f {guess} -t UTF-8" in line
    assert f"1 records, 1 of them unreadable; the first at {path}:1: byte 0x" in line


def test_C18_bytes_that_are_no_text_get_no_guess():
    assert files.guess_encoding(bytes(range(256)) * 4) is None


@pytest.mark.parametrize("indent", [None, 1])
def test_C18_a_JSON_array_is_told_with_the_command_that_mends_it(tmp_path, indent):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=indent) + "\n")
    with pytest.raises(DataError) as caught:
        list(jsonl.Source(files=str(path)).records())
    line = str(caught.value)
    assert f"the first at {path}:1: " in line and "json.load(open(" in line
    code = line.split('python -c "')[1].split('" >')[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path.write_text(done.stdout)
    assert len(list(jsonl.Source(files=str(path)).records())) == 2


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_C18_another_delimiter_is_named(tmp_path, delimiter):
    path = tmp_path / "x.csv"
    path.write_text(f"text{delimiter}label\na{delimiter}1\n")
    made_of = csv.Source(files=str(path), columns=("text", "label"))
    with pytest.raises(DataError, match="set delimiter=") as caught:
        made_of.check()
    assert repr(delimiter) in str(caught.value)
    other = csv.Source(files=str(path), columns=("text", "label"), delimiter=delimiter)
    assert [r.fields for r in other.records()] == [{"text": "a", "label": "1"}]


# ---- C19: too few records to hold one out ----


def test_C19_the_message_says_what_would_work(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one line\nanother line\n" * 30)  # No blank line: one paragraph.
    part = text.Source(files=str(path), part="heldout")
    with pytest.raises(DataError) as caught:
        list(part.records())
    line = str(caught.value)
    assert "(1 in all, holdout=0.05)" in line and "raise holdout" not in line
    assert "set split='line' (60 records)" in line
    again = text.Source(files=str(path), part="heldout", split="line")
    assert len(list(again.records())) == 3


def test_C19_few_paragraphs(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one line\nanother line\n\n" * 4)
    with pytest.raises(DataError, match=r"above 0\.25 in all .* or set split='line'"):
        list(text.Source(files=str(path), part="heldout").records())
    held = text.Source(files=str(path), part="heldout", holdout=0.26)
    assert len(list(held.records())) == 1
