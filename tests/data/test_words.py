"""Rows of words: windows, alignment of pieces and tags, and what is refused."""

import collections

import numpy as np
import pytest

from lm.data import words
from lm.data.sources.base import Record
from lm.errors import DataError

LABELS = ("O", "B-x", "I-x")


class Out:
    """Collects rows as `Index.row` gives them."""

    def __init__(self):
        self.rows, self.record, self.counts = [], -1, collections.Counter()

    def row(self, pieces, **values):
        made = {k: np.asarray(v) if k != "record" else v for k, v in values.items()}
        self.rows.append({"pieces": [np.asarray(p) for p in pieces], **made})


def layout(length=8, overhead=2, stride=3, pack=False, too_long="window", **reader):
    known = {"words": "words", "tags": "tags", "labels": LABELS}
    known |= {"given": "bio", "scheme": "bio"}
    return words.Words(
        reader=words.Tagged(**known | reader),
        prefix="",
        length=length,
        overhead=overhead,
        stride=stride,
        pack=pack,
        too_long=too_long,
    )


def record(count, **more):
    tags = ("B-x", "I-x", "O", "O")
    fields = {"words": tuple(f"w{n}" for n in range(count))}
    fields["tags"] = tuple(tags[n % 4] for n in range(count))
    return Record(fields | more, "x.conll:7")


def rows(made, *sentences):
    """The rows of sentences, each given by the numbers of pieces of its words."""
    out, pieces = Out(), iter(range(1, 100000))

    def encoded():
        for sizes in sentences:
            out.record += 1
            yield record(len(sizes)), [[next(pieces) for _ in range(n)] for n in sizes]

    made.write(encoded(), out)
    return out


@pytest.mark.parametrize("count", [1, 6, 7, 50, 5000])
@pytest.mark.parametrize("stride", [1, 3, 6])
def test_each_word_is_read_once_where_it_has_most_context(count, stride):
    sizes = np.random.default_rng(count).integers(1, 4, count).tolist()
    found = words.windows(sizes, 6, stride)
    starts = np.cumsum([0, *sizes])
    readers = [[] for _ in range(count)]
    for number, window in enumerate(found):
        assert 1 <= starts[window.end] - starts[window.start] <= 6
        for at in np.flatnonzero(window.read) + window.start:
            readers[at].append(number)
    assert all(len(numbers) == 1 for numbers in readers)
    assert found[0].start == 0 and found[-1].end == count

    def near(at, window):
        before = starts[at] - starts[window.start]
        return min(before, starts[window.end] - starts[at + 1])

    for at in range(0, count, max(count // 50, 1)):
        holders = [w for w in found if w.start <= at < w.end]
        best = max(near(at, window) for window in holders)
        assert near(at, found[readers[at][0]]) == best
        assert holders.index(found[readers[at][0]]) == next(
            n for n, w in enumerate(holders) if near(at, w) == best
        )


def test_an_example_aligns_words_with_their_pieces():
    """Words of 2, 1, 0 and 3 pieces; the third has no place and no tag."""
    out = rows(layout(length=12), [2, 1, 0, 3])
    (row,) = out.rows
    assert row["word"].tolist() == [0, 1, 3] and row["tag"].tolist() == [1, 2, 0]
    assert out.counts == {"words_without_pieces_skip": 1}
    example = words.Aligned(12, (101,), (102,), 9)(row, None)
    assert example["inputs"].tolist() == [101, 1, 2, 3, 4, 5, 6, 102, 9, 9, 9, 9]
    assert example["segment_ids"].tolist() == [1] * 8 + [0] * 4
    assert example["positions"].tolist() == [*range(8), 0, 0, 0, 0]
    assert example["word_starts"].tolist() == [1, 3, 4] + [0] * 7
    assert example["word_ends"].tolist() == [3, 4, 7] + [0] * 7
    assert example["word_segments"].tolist() == [1] * 3 + [0] * 7
    assert example["word_borders"].tolist() == [1, 0, 2] + [0] * 7
    assert example["labels"].tolist() == [1, 2, 0] + [0] * 7
    assert example["label_weights"].tolist() == [1] * 3 + [0] * 7


def test_a_sentence_without_any_piece_has_a_row():
    out = rows(layout(), [0, 0], [1])
    assert [row["record"] for row in out.rows] == [0, 1]
    example = words.Aligned(8, (101,), (102,), 9)(out.rows[0], None)
    assert example["inputs"].tolist() == [101, 102, 9, 9, 9, 9, 9, 9]
    assert example["label_weights"].sum() == example["word_ends"].sum() == 0
    bare = words.Aligned(8, (), (), 9)(out.rows[0], None)
    assert bare["segment_ids"].sum() == 0 and bare["inputs"].tolist() == [9] * 8


def test_packed_rows_are_the_windows_side_by_side():
    sentences = ([2, 1], [1], [3, 3, 3], [0], [2])
    one = rows(layout(), *sentences)
    packed = rows(layout(length=16, stride=3, pack=True), *sentences)
    assert len(packed.rows) < len(one.rows)
    made = [words.Aligned(16, (101,), (102,), 0)(r, None) for r in packed.rows]
    alone = [words.Aligned(16, (101,), (102,), 0)(r, None) for r in one.rows]
    texts = {
        tuple(e["inputs"][e["segment_ids"] == s].tolist())
        for e in made
        for s in range(1, e["segment_ids"].max() + 1)
    }
    # A longer row needs no windows for the third sentence.
    assert {tuple(e["inputs"][e["segment_ids"] > 0].tolist()) for e in alone} ^ texts
    for example in made:
        real = example["word_ends"] > 0
        where = example["segment_ids"][example["word_starts"][real]]
        assert (where == example["word_segments"][real]).all()
    total = sum(example["label_weights"].sum() for example in made)
    assert total == sum(e["label_weights"].sum() for e in alone) == 7
    assert sorted(n for row in packed.rows for n in row["record"]) == [*range(5)]


def test_windows_know_the_ends_of_their_sentence():
    out = rows(layout(), [3, 3, 3, 3])
    assert [row["border"].tolist() for row in out.rows] == [[1, 0], [0, 0], [0, 2]]
    assert [row["word"].tolist() for row in out.rows] == [[0, 1], [1, 2], [2, 3]]
    assert [row["read"].tolist() for row in out.rows] == [[1, 1], [0, 1], [0, 1]]
    assert out.counts == {"too_long_window": 1}


def test_long_words_and_long_sentences():
    (row,) = rows(layout(), [9]).rows  # a word longer than a row
    assert [len(p) for p in row["pieces"]] == [6]
    cut = rows(layout(too_long="cut"), [3, 3, 3], [1])
    assert [row["word"].tolist() for row in cut.rows] == [[0, 1], [0]]
    assert cut.counts == {"too_long_cut": 1}
    skipped = rows(layout(too_long="skip"), [3, 3, 3], [1])
    assert [row["record"] for row in skipped.rows] == [1]
    with pytest.raises(DataError, match=r"x.conll:7: found 9 tokens in 3 words"):
        rows(layout(too_long="error"), [3, 3, 3])


def test_marked_words_have_token_type_1():
    made = layout(mark="verb")
    out = Out()
    out.record = 0
    made.write(iter([(record(3, verb=1), [[1], [2, 3], [4]])]), out)
    example = words.Aligned(8, (101,), (102,), 0)(out.rows[0], None)
    assert example["token_types"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    for wrong in (3, -1, "w1"):
        with pytest.raises(DataError, match="the number of a word, 0 to 2"):
            made.texts(record(3, verb=wrong))


def test_tags_are_converted_mended_or_refused():
    other = layout(labels=("O", "S-x", "B-x", "E-x"), given="bio", scheme="bmes")
    assert other.reader.tags_of(record(4)) == ["B-x", "E-x", "O", "O"]
    loose = record(2, tags=("O", "I-x"))
    assert layout().reader.tags_of(loose) == ["O", "B-x"]
    with pytest.raises(DataError, match=r"x.conll:7.*'I-x' of word 2 after 'O'"):
        layout(repair=False).texts(loose)
    with pytest.raises(DataError, match=r"tags 'B-y' of word 1 .*one of O, B-x"):
        layout().texts(record(2, tags=("B-y", "O")))
    with pytest.raises(DataError, match="2 words and 1 tags"):
        layout().texts(record(2, tags=("O",)))
    with pytest.raises(DataError, match=r"'S-x' of word 1 in scheme 'bio'"):
        layout().texts(record(1, tags=("S-x",)))
