"""Lines of a command's input: from files, gzip and standard input; what is refused."""

import gzip
import io
import types

import pytest

from lm.errors import DataError
from lm.host import inputs

TEXT = 'first\n\n{"text": "größer"}\n'


def lines(path):
    return [line.text for line in inputs.read_lines(path, print)]


def test_lines_of_files_and_of_standard_input_are_the_same(tmp_path, monkeypatch):
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    # Two members, as `cat a.gz b.gz` makes them.
    parts = TEXT[:7].encode(), TEXT[7:].encode()
    packed.write_bytes(b"".join(map(gzip.compress, parts)))
    stream = types.SimpleNamespace(
        buffer=io.BytesIO(TEXT.encode()), isatty=lambda: False
    )
    monkeypatch.setattr("sys.stdin", stream)
    expected = ["first", "", '{"text": "größer"}']
    assert lines(plain) == lines(packed) == lines(None) == expected
    assert inputs.read_lines(plain, print)[2].where == f"{plain}:3"


def test_refused_files(tmp_path, monkeypatch):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(DataError, match=r"cut\.gz: found a damaged gzip"):
        lines(cut)
    latin = tmp_path / "a.txt"
    latin.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt:3: .*not UTF-8 at offset 12"):
        lines(latin)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(5000)))
    monkeypatch.setattr(inputs, "MOST", 4000)
    with pytest.raises(DataError, match="more than 4,000 bytes"):
        lines(bomb)


def test_fields_of_a_row():
    line = inputs.Line("x:1", '{"text": "a", "n": 3, "half": "\\ud800"}')
    row = inputs.parse_object(line, "EXAMPLE")
    assert inputs.text_field(row, "text", "x:1", "EXAMPLE") == "a"
    for name, what in (("n", "n=3"), ("none", "no 'none'"), ("half", "surrogate")):
        with pytest.raises(DataError, match=f"x:1: found .*{what}"):
            inputs.text_field(row, name, "x:1", "EXAMPLE")
    for text in ("[1]", "{", '{"a": NaN}', "3"):
        with pytest.raises(DataError, match="x:1: found"):
            inputs.parse_object(inputs.Line("x:1", text), "EXAMPLE")
