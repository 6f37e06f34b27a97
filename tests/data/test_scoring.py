"""Rows of texts to be scored: windows by hand, contexts, masks one by one."""

import types

import numpy as np
import pytest

from lm.data import scoring
from lm.data.scoring import Settings, Text

CODEC = types.SimpleNamespace(
    eos_id=None, encode=lambda text: [len(w) for w in text.split()]
)


@pytest.mark.parametrize(
    ("first", "length", "stride", "expected"),
    [
        # The last window is filled with earlier tokens.
        (1, 4, None, [(0, 1, 5), (4, 5, 9), (5, 9, 10)]),
        (1, 4, 2, [(0, 1, 5), (2, 5, 7), (4, 7, 9), (5, 9, 10)]),
        (1, 99, None, [(0, 1, 10)]),
        (1, None, None, [(0, 1, 10)]),
        # The left end of a context is cut; a long continuation has windows.
        (8, 4, None, [(5, 8, 10)]),
        (4, 4, None, [(3, 4, 8), (5, 8, 10)]),
        (10, 4, None, []),
    ],
)
def test_windows_by_hand(first, length, stride, expected):
    """Of ten tokens; each from `first` on is predicted once, by `length` tokens."""
    found = [*scoring.windows(10, first, length, stride)]
    assert found == expected
    predicted = [n for w in found for n in range(w.first, w.stop)]
    assert predicted == [*range(first, 10)]
    assert all(w.stop - 1 - w.start <= (length or 10) for w in found)


def test_rows_predict_what_is_asked_and_count_what_is_cut():
    before, ids = [7, 8, 9], [1, 2, 3, 4]
    scored = scoring.left_to_right(before, ids, Settings(length=3), None, prefix=True)
    assert scored.ids == ids and scored.unscored == () and scored.cut == 2
    one, two = scored.rows
    assert one["inputs"].tolist() == [9, 1, 2] and one["targets"].tolist() == [1, 2, 3]
    assert one["weights"].tolist() == [1, 1, 1]
    assert one["prefix"].tolist() == [True, False, False]
    assert two["inputs"].tolist() == [1, 2, 3] and two["weights"].tolist() == [0, 0, 1]
    assert two["positions"].tolist() == [0, 1, 2]
    alone = scoring.left_to_right([], ids, Settings(), 64)
    assert alone.ids == [2, 3, 4] and alone.unscored == (1,)
    assert [row["inputs"].tolist() for row in alone.rows] == [[1, 2, 3]]
    for nothing in ([], [1]):
        assert [*scoring.left_to_right([], nothing, Settings(), 64).rows] == []


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    """A piece of a context's last word with what follows counts as the context's."""
    assert scoring.split(CODEC, Text("ab", "a bcd ")) == ([1, 3], [2])
    assert scoring.split(CODEC, Text("ab", "a bcd")) == ([1, 3], [])
    assert scoring.split(CODEC, Text("ab", "  ")) == ([], [2])
    letters = types.SimpleNamespace(eos_id=None, encode=list)
    assert scoring.split(letters, Text("b", "a ")) == (["a"], [" ", "b"])
    lines = types.SimpleNamespace(
        eos_id=0, encode=lambda text: [*CODEC.encode(text), 0]
    )
    assert scoring.split(lines, Text(" b", "aa a")) == ([2, 1], [1, 0])
    assert scoring.with_end([1, 0], 0) == [1, 0] == scoring.with_end([1], 0)


def masked(hide, limit=64, before=()):
    settings = Settings(hide=hide)
    scored = scoring.masked_one_by_one(
        before,
        [10, 11, 12, 20, 21],
        settings,
        limit,
        around=([1], [2]),
        mask=0,
        starts_word=lambda id: id % 10 == 0,
    )
    return [
        (r["inputs"].tolist(), int(r["target_positions"][0]), int(r["targets"][0]))
        for r in scored.rows
    ]


def test_masks_one_by_one():
    assert masked("token") == [
        ([1, 0, 11, 12, 20, 21, 2], 1, 10),
        ([1, 10, 0, 12, 20, 21, 2], 2, 11),
        ([1, 10, 11, 0, 20, 21, 2], 3, 12),
        ([1, 10, 11, 12, 0, 21, 2], 4, 20),
        ([1, 10, 11, 12, 20, 0, 2], 5, 21),
    ]
    assert masked("rest_of_word")[:2] == [
        ([1, 0, 0, 0, 20, 21, 2], 1, 10),
        ([1, 10, 0, 0, 20, 21, 2], 2, 11),
    ]
    assert masked("token", before=[5])[0] == ([1, 5, 0, 11, 12, 20, 21, 2], 2, 10)


def test_a_long_text_is_cut_around_the_masked_token():
    found = masked("token", limit=5)
    assert [row for row, _, _ in found] == [
        [1, 0, 11, 12, 2],
        [1, 10, 0, 12, 2],
        [1, 11, 0, 20, 2],
        [1, 12, 0, 21, 2],
        [1, 12, 20, 0, 2],
    ]
    assert all(row[place] == 0 for row, place, _ in found)


def test_the_target_of_a_source():
    row = scoring.target_given_source([3, 4, 2], 9, [5, 6, 2]).rows[0]
    assert row["source_inputs"].tolist() == [3, 4, 2]
    assert row["inputs"].tolist() == [9, 5, 6] and row["targets"].tolist() == [5, 6, 2]
    assert np.all(row["weights"] == 1) and np.all(row["source_segment_ids"] == 1)
