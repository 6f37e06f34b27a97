"""Runs and judgements as files, and what is refused with file and line."""

import gzip

import pytest

from lm.errors import DataError
from lm.formats import trec

RUN = "1 Q0 b 1 2.5 x\n1 Q0 a 2 -1e-3 x\n\n2 Q0 a 1 0.25 x\n"


def test_a_run_comes_back(tmp_path):
    path = tmp_path / "a.run"
    path.write_text(RUN)
    run = trec.read_run(path)
    assert run == {"1": {"b": 2.5, "a": -0.001}, "2": {"a": 0.25}}
    packed = gzip.compress(trec.format_run(run, "x").encode())
    (tmp_path / "b.run.gz").write_bytes(packed)
    assert trec.read_run(tmp_path / "b.run.gz") == run
    ranks = [line.split()[3] for line in trec.format_run(run, "x").splitlines()]
    assert ranks == ["1", "2", "1"]


def test_judgements_of_trec_and_of_beir(tmp_path):
    expected = {"q1": {"a": 2, "b": 0}, "q2": {"c": -1}}
    (tmp_path / "trec").write_text("q1 0 a 2\nq1 0 b 0\nq2 Q0 c -1\n")
    assert trec.read_qrels(tmp_path / "trec") == expected
    (tmp_path / "beir.tsv").write_text(trec.format_qrels(expected))
    assert trec.read_qrels(tmp_path / "beir.tsv") == expected


@pytest.mark.parametrize(
    "line, found",
    [
        ("1 Q0 b 2 2.5", "5 fields"),
        ("1 Q0 b", "3 fields"),
        ("1 Q0 b 2 2.5 a tag", "7 fields"),
        ("1 Q0 b 2 high x", "the score 'high'"),
        ("1 Q0 b 2 nan x", "the score 'nan'"),
        ("1 Q0 a 2 1.0 x", "document 'a' of query '1' again"),
    ],
)
def test_a_wrong_line_of_a_run(line, found, tmp_path):
    path = tmp_path / "a.run"
    path.write_text(f"1 Q0 a 1 3.0 x\n{line}")
    with pytest.raises(DataError) as error:
        trec.read_run(path)
    assert error.value.where == f"{path}:2" and error.value.found.startswith(found)


@pytest.mark.parametrize(
    "text, line, found",
    [
        ("1 0 a 1\n1 0 b", 2, "3 fields"),
        ("1 0 a 1\n1 0 b 1.5", 2, "the gain '1.5'"),
        ("1 0 a 1\n1 0 a 2", 2, "document 'a' of query '1' again"),
        ("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb", 3, "2 fields"),
        ("query-id\tcorpus-id\tscore\n1\ta\tx", 2, "the gain 'x'"),
        ("1\ta\t1\n", 1, "3 fields"),
    ],
)
def test_a_wrong_line_of_judgements(text, line, found, tmp_path):
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        trec.read_qrels(path)
    assert error.value.where == f"{path}:{line}" and error.value.found.startswith(found)


@pytest.mark.parametrize("read", [trec.read_run, trec.read_qrels])
@pytest.mark.parametrize("data", [b"", b"\n\n", b"1 0 \xff 1\n", b"\x1f\x8b\x08torn"])
def test_files_that_are_empty_or_no_text(read, data, tmp_path):
    path = tmp_path / ("a.gz" if data.startswith(b"\x1f") else "a")
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        read(path)


def test_judgements_of_other_queries_or_documents(tmp_path):
    qrels = {"1": {"a": 1, "z": 0}, "2": {"y": 1}}
    trec.check_known(qrels, tmp_path, ["1", "2"], ["a", "y", "z"])
    with pytest.raises(DataError, match="1 unknown of 2 queries, such as '2'"):
        trec.check_known(qrels, tmp_path, ["1"], ["a", "y", "z"])
    with pytest.raises(DataError, match="2 unknown of 3 documents, such as 'z'"):
        trec.check_known(qrels, tmp_path, ["1", "2"], ["a"])


@pytest.mark.parametrize("id", ["", "two words", "tab\t", "line\n"])
def test_an_id_that_a_line_cannot_hold(id):
    with pytest.raises(DataError, match="without white space"):
        trec.format_run({"1": {id: 1.0}}, "x")
