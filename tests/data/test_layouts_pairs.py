"""Rows of source and target: what fits, what is packed, and what is refused."""

import numpy as np
import pytest

from lm.data import index as indices
from lm.data import layouts
from lm.data.sources.base import Record
from lm.errors import DataError
from tests.data.test_index import Letters, build, rows


def pair(source, target):
    return {"source": source, "target": target}


def test_a_pair_a_row_with_the_number_of_its_record(tmp_path):
    layout = layouts.Pairs(6, 6, 1, False)
    index = build(tmp_path, layout, pair("ab", "cde"), pair("f", "g"))
    assert rows(index) == [["ab", "cde"], ["f", "g"]]
    assert index.fields["record"].tolist() == [0, 1]


def test_prefix_joined_sources_and_targets(tmp_path):
    records = [pair(("ab", "cd"), ("x", "y")), pair("e", "z")]
    layout = layouts.Pairs(20, 20, 1, False, prefix="go:", join="+")
    index = build(tmp_path / "first", layout, *records)
    assert rows(index) == [["go:ab+cd", "x"], ["go:e", "z"]]
    layout = layouts.Pairs(20, 20, 1, False, targets="each")
    index = build(tmp_path / "each", layout, *records)
    assert rows(index) == [["abcd", "x"], ["abcd", "y"], ["e", "z"]]
    assert index.fields["record"].tolist() == [0, 0, 1]


def test_packing_is_first_fit_on_both_sides(tmp_path):
    pairs = [("aaaa", "b"), ("c", "dddd"), ("ee", "f"), ("g", "hh"), ("i", "j")]
    index = build(
        tmp_path, layouts.Pairs(8, 8, 1, True), *(pair(s, t) for s, t in pairs)
    )
    # After the first pair a row has 3 and 6 places left, which the second fills partly.
    assert rows(index) == [
        ["aaaa", "b", "c", "dddd"],
        ["ee", "f", "g", "hh", "i", "j"],
    ]
    assert index.fields == {}


def test_packed_rows_fit_and_lose_nothing(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [
        pair("s" * rng.integers(1, 9), "t" * rng.integers(1, 5)) for _ in range(300)
    ]
    index = build(tmp_path, layouts.Pairs(32, 16, 1, True), *pairs)
    found = []
    for row in rows(index):
        assert sum(len(s) + 1 for s in row[0::2]) <= 32
        assert sum(len(t) + 1 for t in row[1::2]) <= 16
        found += zip(row[0::2], row[1::2], strict=True)
    assert sorted(found) == sorted((p["source"], p["target"]) for p in pairs)
    needed = sum(len(p["target"]) + 1 for p in pairs) / 16
    assert len(index) < 1.15 * needed


@pytest.mark.parametrize(
    "long", [pair("abcdef", "x"), pair("x", "abcd")], ids=["source", "target"]
)
def test_pairs_that_do_not_fit(tmp_path, long):
    records = [pair("abcde", "xyz"), long, pair("a", "b")]

    def built(too_long, pack=False):
        layout = layouts.Pairs(6, 4, 1, pack, too_long=too_long)
        return build(tmp_path / f"{too_long}{pack}", layout, *records)

    sizes = rf"{len(long['source'])} tokens of source and {len(long['target'])} of"
    with pytest.raises(DataError, match=rf"fixed:2: found {sizes} .*at most 5 and 3"):
        built("error")
    cut = built("cut")
    assert rows(cut)[1] == [long["source"][:5], long["target"][:3]]
    assert cut.facts["too_long_cut"] == 1
    skipped = built("skip")
    assert rows(skipped) == [["abcde", "xyz"], ["a", "b"]]
    assert skipped.fields["record"].tolist() == [0, 2]
    assert skipped.facts["too_long_skip"] == 1
    assert len(built("cut", pack=True)) == 3


def test_what_was_cut_is_told(tmp_path):
    notes = []
    source = type("S", (), {"records": lambda self: [Record(pair("abc", "x"), "r:1")]})
    indices.build(
        tmp_path / "i",
        source(),
        layouts.Pairs(3, 3, 1, False, too_long="cut"),
        Letters(),
        skip_bad=False,
        max_bad=0.0,
        note=notes.append,
    )
    assert "too_long_cut: 1 of 1 records" in notes


@pytest.mark.parametrize(
    ("record", "column"),
    [
        (pair("", "x"), "source"),
        (pair("x", " "), "target"),
        (pair("x", ("a", "")), "t"),
    ],
)
def test_an_empty_side_is_a_bad_record(tmp_path, record, column):
    layout = layouts.Pairs(8, 8, 1, False, targets="each")
    with pytest.raises(DataError, match=rf"fixed:2: found an empty {column}"):
        build(tmp_path, layout, pair("a", "b"), record)
    index = build(tmp_path, layout, pair("a", "b"), record, skip_bad=True)
    assert index.facts["skipped"] == 1
    assert rows(index) == [["a", "b"]]


@pytest.mark.parametrize("wrong", [128, -1])
def test_an_id_outside_the_vocabulary_names_the_record(tmp_path, wrong):
    class Faulty(Letters):
        def encode_batch(self, texts):
            return [[wrong if x == 33 else x for x in ids] for ids in super_of(texts)]

    super_of = Letters().encode_batch
    source = type("S", (), {})()
    texts = ["abc", "de!", "f"]
    source.records = lambda: [
        Record({"text": t}, f"r:{i}") for i, t in enumerate(texts)
    ]
    with pytest.raises(
        DataError, match=rf"r:1: found a text with token id {wrong}.*127"
    ):
        indices.build(
            tmp_path / "i",
            source,
            layouts.Documents(8, 2, False),
            Faulty(),
            skip_bad=True,
            max_bad=1.0,
            note=lambda line: None,
        )
    assert not (tmp_path / "i").exists()
