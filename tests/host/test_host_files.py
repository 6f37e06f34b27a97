"""Files of anybody: what is no regular file of the shape expected is one line."""

import json
import os
import socket
import threading
from contextlib import suppress

import pytest

from lm import errors, evaluate, generate
from lm.errors import ConfigError, DataError, Refusal, StorageError, WorkdirError
from lm.host import files, lock, storage
from lm.workdir.writer import cut, read_rows


def make(path, kind):
    """Puts something at a path that is no regular file of ours."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = socket.socket(socket.AF_UNIX)
        here.bind(str(path))
    else:
        path.symlink_to(
            {"zero": "/dev/zero", "loop": path, "dangling": "nowhere"}[kind]
        )


KINDS = ("fifo", "folder", "socket", "zero", "loop", "dangling")


def within(seconds, act):
    """The refusal of `act`, which is given so long: a pipe would block for ever."""
    found = []

    def run():
        with suppress(SystemExit):
            try:
                found.append(act())
            except Refusal as error:
                found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it still waits"
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path.__class__("thing")
    make(path, kind)
    for act in (files.read_bytes, files.read_json, storage.Appender, read_rows):
        error = within(5, lambda act=act: act(path))
        assert isinstance(error, StorageError) and "thing: found " in error.line()
    error = within(5, lambda: files.read_text(path, error=DataError))
    assert isinstance(error, DataError | StorageError)
    assert isinstance(within(5, lambda: cut(path, 3)), StorageError)
    assert isinstance(within(5, lambda: lock.Lock(path).__enter__()), StorageError)


def test_a_file_has_a_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(StorageError, match="found 5 bytes, expected at most 4"):
        files.read_bytes(tmp_path / "file", limit=4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'"\xff"', "not UTF-8 at offset 1"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"[" * 99_999, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"1" * 9999, "no JSON"),
        (b"[]", r"found \[\], expected JSON as"),
        (b"{}", "no 'a'"),
        (b'{"a": "1"}', "a: found '1', expected a whole number"),
        (b'{"a": true}', "a: found True"),
        (b'{"a": 1, "b": [{"c": "x"}]}', r"b\.0\.c: found 'x', expected a number"),
        (b'{"a": 1, "b": 3}', "b: found 3, expected a list"),
        (b'{"a": 1, "b": [3]}', r"b\.0: found 3, expected an object"),
    ],
)
def test_json_of_another_shape_names_the_part(tmp_path, text, found):
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(StorageError, match=found) as caught:
        files.read_json(tmp_path / "file", {"a": 1, "b": [{"c": 0.5}]})
    assert "\n" not in caught.value.line()


def test_json_of_the_shape_is_read(tmp_path):
    value = {"a": 3, "b": [{"c": 1, "d": None}], "more": []}
    (tmp_path / "file").write_text(json.dumps(value))
    assert files.read_json(tmp_path / "file", {"a": 1, "b": [{"c": 0.5}]}) == value


# ── The files of a workdir ──────────────────────────────────────────────────────────

SHAPES = {
    "list": b"[]",
    "number": b"3",
    "sections": b'{"model": 3, "evals": [1], "data": "x"}',
    "evals": b'{"evals": 3}',
    "bytes": b"\xff\xfe{}",
    "deep": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "nested": b'{"a":' * 60 + b"1" + b"}" * 60,
    "torn": b'{"steps": 1',
    "text": b'{"steps": "a\\ud800", "batch_size": 1e999}',
}


@pytest.mark.parametrize("shape", [*SHAPES, *KINDS])
def test_a_config_of_another_shape_is_a_line_with_2(tmp_path, capsys, shape):
    file = tmp_path / "config.json"
    if shape in SHAPES:
        file.write_bytes(SHAPES[shape])
    elif shape == "socket":
        pytest.skip("its path is too long here")
    else:
        make(file, shape)
    for act, more in ((evaluate.main, []), (generate.main, ["a prompt"])):
        code = within(
            20, lambda act=act, more=more: act([f"--workdir={tmp_path}", *more])
        )
        said = capsys.readouterr().err
        assert code == 2 and len(said.splitlines()) == 1 and said.isascii(), said


OWNERS = (
    *(
        "[]",
        "3",
        "",
        "\udcff",
        "[" * 99_999,
        '{"pid": 1}',
        '{"machine": 3, "pid": "x"}',
    ),
    '{"pid": "1", "machine": "HERE"}',
    '{"pid": 1e400, "machine": "HERE"}',
    '{"pid": -1, "machine": "HERE"}',
    '{"pid": 99999999999999999999, "machine": "HERE"}',
    '{"pid": 4194305, "machine": "HERE"}',
)


@pytest.mark.parametrize("owner", OWNERS, ids=range(len(OWNERS)))
def test_a_lock_of_another_shape_is_taken_over(tmp_path, owner):
    path = tmp_path / "lock"
    text = owner.replace("HERE", lock._machine())
    path.write_bytes(text.encode(errors="surrogateescape"))
    with lock.Lock(path, limit=0.3):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_that_another_holds_stays_refused(tmp_path):
    with lock.Lock(tmp_path / "lock"), pytest.raises(WorkdirError):
        lock.Lock(tmp_path / "lock").__enter__()


ROWS = b'{"step": 1}\n[]\n"x"\n{"step": "2"}\n{"step": null}\n\xff\n' + b"[" * 9999
ROWS += b'\n{"step": true}\n{"step": 2}\n{"step": 3}\n{"st'


def test_rows_of_another_shape_are_dropped_with_a_warning(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(ROWS)
    assert read_rows(file) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert "7 lines that are no rows were dropped" in cut(file, 2)
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


# ── What is printed ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain über 今天 🙂", "plain über 今天 🙂"),
        ("red \x1b[31m", r"red \x1b[31m"),
        ("bell \a\b\0 \x7f \x9b", r"bell \x07\x08\x00 \x7f \x9b"),
        ("byte \udcff", r"byte \udcff"),
        ("turned \u202e", r"turned \u202e"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, shown):
    assert errors.escape(text) == shown


def test_an_error_is_a_line_of_bounded_length():
    line = ConfigError("x" * 5000, "a\r\n\tb \x1b[2J" + "y" * 9000, "c").line()
    assert "\x1b" not in line and "\n" not in line and len(line) < 4500
    assert line.startswith("error[config] xxx") and " ... " in line
