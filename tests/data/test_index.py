"""Rows: how records become pieces, what packing keeps, and what is refused."""

import itertools

import numpy as np
import pytest

from lm.data import index as indices
from lm.data import labels, layouts, sentences
from lm.data.sources.base import Record
from lm.errors import DataError


class Letters:
    """A tokenizer of one token per letter; white space is none."""

    vocab_size = 128
    fingerprint = "letters"
    unk_id = None

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text if letter.strip()] for text in texts]


class Fixed:
    """A source of given records."""

    def __init__(self, *records):
        self.given = records

    def records(self):
        for number, record in enumerate(self.given):
            if isinstance(record, DataError):
                yield record
            else:
                fields = {"text": record} if isinstance(record, str) else record
                yield Record(fields, f"fixed:{number + 1}")

    def fingerprint(self):
        return repr(self.given)


def build(tmp_path, layout, *records, skip_bad=False, max_bad=0.5):
    folder = tmp_path / "index"
    indices.build(
        folder,
        Fixed(*records),
        layout,
        Letters(),
        skip_bad=skip_bad,
        max_bad=max_bad,
        note=lambda line: None,
    )
    return indices.load(folder)


def text(pieces):
    return ["".join(map(chr, piece)) for piece in pieces]


def rows(index):
    return [text(index.row(i)["pieces"]) for i in range(len(index))]


def test_documents_are_cut_at_the_room_of_a_row(tmp_path):
    layout = layouts.Documents(length=6, overhead=2, pack=False)
    index = build(tmp_path, layout, "abcdefghij", "", "kl")
    assert rows(index) == [["abcd"], ["efgh"], ["ij"], ["kl"]]
    assert index.facts["records"] == 3
    assert index.facts["tokens"] == 12


def test_packing_fills_rows_and_loses_nothing(tmp_path):
    layout = layouts.Documents(length=8, overhead=2, pack=True)
    documents = ["abcdef", "gh", "i", "jklmnopq", "rs", "t"]
    index = build(tmp_path, layout, *documents)
    packed = [["abcdef"], ["gh", "i"], ["jklmno"], ["pq", "rs"], ["t"]]
    assert rows(index) == packed
    for row in rows(index):
        assert sum(len(piece) + 2 for piece in row) <= 8
    letters = "".join(itertools.chain(*rows(index)))
    assert sorted(letters) == sorted("".join(documents))


def test_sentences_fill_a_row(tmp_path):
    layout = sentences.Sentences(length=11, short=0.0)
    index = build(tmp_path, layout, "abc. def. gh.", "ijklm nopqrs", "x")
    # Room for 8 tokens, so sentences are cut at 4; "x" alone makes no pair.
    assert rows(index) == [["abc.", "def."], ["g", "h."], ["ijkl", "mnop"], ["q", "rs"]]
    assert index.fields["document"].tolist() == [0, 0, 1, 1]


def test_every_row_of_sentences_can_be_split(tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        " ".join("a" * rng.integers(1, 30) + "." for _ in range(rng.integers(1, 9)))
        for _ in range(50)
    ]
    index = build(tmp_path, sentences.Sentences(length=20, short=0.3), *documents)
    kept = 0
    for row in rows(index):
        assert len(row) >= 2
        assert sum(map(len, row)) <= 17
        kept += sum(map(len, row))
    assert kept == sum(len(d.replace(" ", "")) for d in documents)


def test_labelled_rows_keep_empty_texts(tmp_path):
    layout = layouts.Labelled(("text",), labels.Class("label", ("bad", "good"), 2))
    records = [{"text": "ab", "label": "good"}, {"text": "", "label": "bad"}]
    index = build(tmp_path, layout, *records)
    assert rows(index) == [["ab"], [""]]
    assert index.fields["labels"].tolist() == [1, 0]


def test_a_record_of_one_token_more_than_a_row_holds_is_too_long(tmp_path):
    layout = layouts.Labelled(
        ("text",), labels.Class("label", (), 2), length=6, overhead=2, too_long="skip"
    )
    fits, too_long = {"text": "abcd", "label": 0}, {"text": "efghi", "label": 1}
    index = build(tmp_path, layout, fits, too_long)
    assert rows(index) == [["abcd"]]
    assert index.facts["too_long_skip"] == 1


def test_a_token_id_outside_the_vocabulary_names_the_record(tmp_path):
    layout = layouts.Documents(length=8, overhead=2, pack=False)
    with pytest.raises(DataError, match=r"fixed:2: .*token id 128"):
        build(tmp_path, layout, "abc", f"d{chr(128)}")
    index = build(tmp_path, layout, f"d{chr(127)}")
    assert index.row(0)["pieces"][0].tolist() == [100, 127]


@pytest.mark.parametrize("label", ["2", "-1", "yes", 1.5, ""])
def test_a_label_out_of_range_names_the_record(tmp_path, label):
    layout = layouts.Labelled(("text",), labels.Class("label", (), 2))
    with pytest.raises(DataError, match=r"fixed:2: .*label.* 0 to 1"):
        build(
            tmp_path, layout, {"text": "a", "label": 0}, {"text": "b", "label": label}
        )


def test_a_missing_column_names_the_record_and_the_columns(tmp_path):
    layout = layouts.Documents(8, 2, False, column="body")
    with pytest.raises(DataError, match=r"fixed:1: found columns text, .*'body'"):
        build(tmp_path, layout, "a")


def test_bad_records_stop_or_are_counted(tmp_path):
    layout = layouts.Documents(8, 2, False)
    bad = DataError("x.txt:7", "byte 0x80", "UTF-8")
    with pytest.raises(DataError, match=r"x\.txt:7"):
        build(tmp_path, layout, "abc", bad)
    index = build(tmp_path, layout, "abc", bad, "de", skip_bad=True)
    assert rows(index) == [["abc"], ["de"]]
    assert index.facts["skipped"] == 1
    assert "x.txt:7" in (tmp_path / "index" / "bad_records.jsonl").read_text()


def test_too_many_bad_records_stop(tmp_path):
    layout = layouts.Documents(8, 2, False)
    bad = DataError("x.txt:7", "byte 0x80", "UTF-8")
    with pytest.raises(DataError, match="2 bad records of 3"):
        build(tmp_path, layout, "abc", bad, bad, skip_bad=True)
    assert not (tmp_path / "index").exists()


def test_a_changed_index_is_noticed(tmp_path):
    build(tmp_path, layouts.Documents(8, 2, False), "abc")
    tokens = tmp_path / "index" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[0] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.bin"):
        indices.load(tmp_path / "index")


def test_the_fingerprint_follows_what_the_rows_depend_on():
    source, codec = Fixed("a"), Letters()
    layout = layouts.Documents(8, 2, False)
    base = indices.fingerprint(source, layout, codec, {"on_bad": "error"})
    other_layout = layouts.Documents(8, 2, True)
    assert base == indices.fingerprint(Fixed("a"), layout, codec, {"on_bad": "error"})
    assert base != indices.fingerprint(Fixed("b"), layout, codec, {"on_bad": "error"})
    assert base != indices.fingerprint(source, other_layout, codec, {"on_bad": "error"})
    assert base != indices.fingerprint(source, layout, codec, {"on_bad": "skip"})
