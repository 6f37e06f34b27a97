"""Texts with ids in three forms, and what is refused with file and line."""

import gzip

import pytest

from lm.errors import DataError
from lm.formats import texts

JSONL = (
    '{"_id": "a", "title": "", "text": "one"}\n\n'
    '{"id": 7, "title": "Two", "text": "words", "more": 1}\n'
)


def test_each_form_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSONL)
    assert texts.read(tmp_path / "a.jsonl") == (["a", "7"], ["one", "Two words"])
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a\tone\ttab\n7\t\n"))
    assert texts.read(tmp_path / "a.tsv.gz") == (["a", "7"], ["one\ttab", ""])
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert texts.read(tmp_path / "a.txt") == (["1", "2", "3"], ["one", "", "two"])


@pytest.mark.parametrize(
    "name, text, line, found",
    [
        ("a.jsonl", JSONL + '{"_id": "b", "te', 4, "no JSON"),
        ("a.jsonl", JSONL + '{"_id": "b"}', 4, "no 'text'"),
        ("a.jsonl", JSONL + '{"text": "b"}', 4, "no '_id'"),
        ("a.jsonl", JSONL + '{"_id": 1.5, "text": "b"}', 4, "_id"),
        ("a.jsonl", JSONL + '{"_id": "", "text": "b"}', 4, "the id ''"),
        ("a.jsonl", JSONL + '{"_id": "b c", "text": "b"}', 4, "the id 'b c'"),
        ("a.jsonl", JSONL + '{"_id": "b", "text": "b", "title": 1}', 4, "title=1"),
        ("a.jsonl", JSONL + '{"_id": "a", "text": "b"}', 4, "the id 'a' again"),
        ("a.jsonl", "[]", 1, "[]"),
        ("a.tsv", "a\tone\nb", 2, "'b'"),
        ("a.tsv", "a\tone\na\ttwo", 2, "the id 'a' again"),
    ],
)
def test_a_wrong_line_is_named(name, text, line, found, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as error:
        texts.read(path)
    assert error.value.where == f"{path}:{line}" and error.value.found.startswith(found)


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.txt"])
def test_an_empty_file(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="no text"):
        texts.read(tmp_path / name)
