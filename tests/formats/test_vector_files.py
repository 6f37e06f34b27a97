"""Files of word vectors: stored ones of other programs, round trips, what is broken."""

import gzip
import json
import struct

import numpy as np
import pytest

from lm import convert
from lm.errors import DataError
from lm.formats import fasttext, glove, word2vec
from lm.formats.vectors import Vectors

TEXT = "2 3\nthe 0.5 -1.25 3e-05\ngrößer 1 2 3\n"
GLOVE = "the 0.5 -1.25 3e-05\nnew york 1 2 3\n. . 4 5 6\n"


def entries(end=b""):
    rows = np.asarray([[0.5, -1.25, 3e-05], [1, 2, 3]], "<f4")
    words = ["the", "größer"]
    return b"".join(w.encode() + b" " + r.tobytes() + end for w, r in zip(words, rows))


@pytest.mark.parametrize(
    "data",
    [TEXT.encode(), b"2 3\n" + entries(), b"2 3\n" + entries(b"\n")],
    ids=["text", "binary", "lines"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_word2vec_is_read_in_each_of_its_forms(tmp_path, data, suffix):
    file = tmp_path / f"v.any{suffix}"
    file.write_bytes(gzip.compress(data) if suffix else data)
    found = word2vec.read(file)
    assert found.words == ["the", "größer"]
    np.testing.assert_array_equal(
        found.table, np.float32([[0.5, -1.25, 3e-05], [1, 2, 3]])
    )


def test_glove_is_split_from_the_right(tmp_path):
    file = tmp_path / "v.txt"
    file.write_text(GLOVE)
    found = glove.read(file)
    assert found.words == ["the", "new york", ". ."]
    assert found.table[:, 2].tolist() == [np.float32(3e-05), 3, 6]


def test_stored_files_of_gensim_are_read_alike(test_data):
    folder = test_data("ref_embeddings")
    text, binary = (word2vec.read(folder / f"tiny.w2v.{e}") for e in ("txt", "bin"))
    assert text.words == binary.words and len(text.words) == 183
    np.testing.assert_array_equal(text.table, binary.table)


def test_a_stored_file_of_fasttext_gives_the_vectors_of_its_library(test_data):
    folder = test_data("ref_embeddings")
    found = fasttext.read(folder / "tiny.fasttext.bin")
    stored = json.loads((folder / "tiny.fasttext.json").read_text())
    assert found.words == stored["words"]
    assert found.counts.tolist() == stored["freq"]
    rows = {word: row for row, word in enumerate(found.words)}
    for word, vector in stored["vectors"].items():
        np.testing.assert_allclose(
            found.vector(word, rows.get(word)), vector, atol=1e-6
        )
    assert {*stored["vectors"]} - {*rows}  # Some are of unseen words.
    as_text = fasttext.read(folder / "tiny.fasttext.vec")
    np.testing.assert_allclose(as_text.table, found.composed(), atol=1e-5)


@pytest.mark.parametrize("kind", ["word2vec", "word2vec.bin", "glove"])
def test_in_and_out_is_the_same_bytes(tmp_path, kind, capsys):
    name, _, suffix = kind.partition(".")
    data = TEXT.encode() if name == "word2vec" else TEXT.partition("\n")[2].encode()
    file = tmp_path / f"v.{suffix or 'txt'}"
    file.write_bytes(b"2 3\n" + entries(b"\n") if suffix else data)
    again = tmp_path / f"again.{suffix or 'txt'}"
    run = f"--workdir={tmp_path / 'run'}"
    assert convert.main([f"--from={name}:{file}", run]) == 0, capsys.readouterr()
    assert convert.main([f"--to={name}:{again}", run]) == 0, capsys.readouterr()
    assert word2vec.read(again).table.shape == (2, 3) if name == "word2vec" else True
    if suffix:
        assert again.read_bytes() == file.read_bytes()
    else:
        numbers = again.read_text().replace("1.0 2.0 3.0", "1 2 3")
        assert numbers == file.read_text()


BAD = {
    "wrong width": (word2vec, "2 3\na 1 2 3\nb 1 2\n", "v:3: found 2 numbers"),
    "too wide": (word2vec, "2 3\na 1 2 3\nb 1 2 3 4\n", "v:3: found 4 numbers"),
    "too few words": (word2vec, "3 3\na 1 2 3\nb 1 2 3\n", "v:4: found 2 words"),
    "too many words": (word2vec, "1 3\na 1 2 3\nb 1 2 3\n", "v:3: found 2 words"),
    "no header": (word2vec, GLOVE, "v:1: found 'the 0.5"),
    "not finite": (word2vec, "1 2\na 1 nan\n", "v:2: found 'nan'"),
    "a word twice": (word2vec, "2 1\na 1\na 2\n", r"v:3: found the word 'a' again"),
    "cut text": (word2vec, "2 3\na 1 2 3\nb 1 2", "v:3: found 2 numbers at the end"),
    "cut binary": (word2vec, b"2 3\n" + entries()[:-3], "word 2 of 2: found the end"),
    "longer binary": (word2vec, b"1 3\n" + entries(), "found more after the last"),
    "empty": (word2vec, "", "v:1: found ''"),
    "glove's width": (glove, "a 1 2 3\nb 1 2\n", "v:2: found 2 numbers"),
    "glove's header": (glove, "2 3\na 1 2 3\n", "v:1: found '2 3', a header"),
    "glove's text": (glove, "only words here\n", "v:1"),
    "no glove": (glove, "", "v:1: found no line"),
    "no fasttext": (fasttext, "1 2\na 1 x\n", "v:2: found 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_file_is_refused_with_its_line(tmp_path, name):
    form, data, wanted = BAD[name]
    file = tmp_path / "v"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=wanted):
        form.read(file)


def binary(**changes):
    """A small .bin of fastText, of two words and three buckets."""
    given = {"version": 12, "labels": 0, "quantised": False, "rows": 5} | changes
    dim = 2
    settings = (dim, 5, 5, 1, 5, 1, 2, 2, 3, 3, 6, 100)
    parts = [struct.pack("<14id", 793712314, given["version"], *settings, 1e-4)]
    parts.append(struct.pack("<3i2q", 2, 2 - given["labels"], given["labels"], 9, -1))
    parts += [w + b"\0" + struct.pack("<qb", 5, 0) for w in (b"the", b"a")]
    for rows in (given["rows"], 2):
        parts.append(struct.pack("<?2q", given["quantised"], rows, dim))
        parts.append(np.arange(rows * dim, dtype="<f4").tobytes())
    return b"".join(parts)


def test_a_broken_fasttext_file_is_refused(tmp_path):
    file = tmp_path / "v.bin"
    file.write_bytes(binary())
    found = fasttext.read(file)
    assert found.words == ["the", "a"] and found.grams.shape == (3, 2)
    for data, wanted in (
        (binary()[:-1], "output matrix: found the end of the file"),
        (binary()[:80], "the header|the dictionary"),
        (binary() + b"x", "found more after"),
        (binary(version=11), "found version 11"),
        (binary(labels=1), "found a classifier with 1 labels"),
        (binary(quantised=True), "found a quantised matrix"),
        (binary(rows=4), "input matrix: found 4 x 2"),
        (b"2 3\n", "found a file that begins with"),
    ):
        file.write_bytes(data)
        with pytest.raises(DataError, match=wanted):
            fasttext.read(file)


def test_words_of_a_file_become_a_vocabulary_or_are_refused(tmp_path, capsys):
    file = tmp_path / "v.txt"
    file.write_text(GLOVE)
    flags = [f"--from=glove:{file}", f"--workdir={tmp_path / 'run'}"]
    assert convert.main(flags) == 3
    assert "'new york'" in capsys.readouterr().err
    assert convert.main([f"--from=glove:{tmp_path / 'no'}", flags[1]]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_vector_without_rows_is_none():
    found = Vectors(["a"], np.ones((1, 2), np.float32))
    assert found.vector("b") is None
    np.testing.assert_array_equal(found.composed(), found.table)
