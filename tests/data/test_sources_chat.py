"""The source of conversations: its two forms, and what is refused, in one line."""

import gzip
import json

import pytest

from lm.data.sources.base import Record
from lm.data.sources.chat import Source
from lm.errors import DataError

TURNS = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
MESSAGES = [{"role": role, "content": text, "name": None} for role, text in TURNS]
WANTED = {
    "roles": ("user", "assistant", "user"),
    "contents": ("Hi", "Hello.", "Bye"),
}


def written(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def test_both_forms_give_the_same_records(tmp_path):
    plain = written(tmp_path / "a.jsonl", {"messages": MESSAGES, "better": "Hello!"})
    found = Source(files=plain, columns=("better",))
    assert [r.fields for r in found.records()] == [WANTED | {"better": "Hello!"}]
    names = {"user": "human", "assistant": "gpt"}
    shared = [{"from": names[role], "value": text} for role, text in TURNS]
    path = written(tmp_path / "b.jsonl.gz", {"x": {"conversations": shared}})
    [record] = Source(files=path, messages="x.conversations").records()
    assert record == Record(WANTED, f"{path}:1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "keys 'text', expected a key 'messages'"),
        ({"conversations": []}, "Fix: set messages='conversations'"),
        ({"messages": "Hi"}, "'messages' as str"),
        ({"messages": []}, "'messages' as an empty list"),
        ({"messages": ["Hi"]}, "message 1 as str"),
        ({"messages": [{"role": "user"}]}, "message 1 with no content"),
        ({"messages": [{"content": "x"}]}, "message 1 with no role"),
        (
            {"messages": [*MESSAGES, {"role": "user", "content": None}]},
            "message 4 with content None",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "content [{"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "U+0000"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(row, message, tmp_path):
    path = written(tmp_path / "a.jsonl", {"messages": MESSAGES}, row)
    good, bad = Source(files=path).records()
    assert good.fields == WANTED
    assert isinstance(bad, DataError)
    assert bad.where == f"{path}:2"
    assert message in str(bad)


def test_a_first_line_without_messages_is_refused_at_once(tmp_path):
    path = written(tmp_path / "a.jsonl", {"dialog": MESSAGES})
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*set messages='dialog'"):
        Source(files=path).check()
    with pytest.raises(DataError, match=r"a file whose name ends in '\.csv'"):
        Source(files=written(tmp_path / "a.csv", {})).check()
