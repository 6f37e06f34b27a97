"""Rows of questions: windows, the tokens of answers, what does not fit."""

import itertools

import numpy as np
import pytest

from lm.data import index, questions
from lm.data.questions import MAY_BEGIN, MAY_END
from lm.data.sources import squad
from lm.data.sources.base import Record
from lm.errors import ConfigError, DataError
from lm.objectives import span_qa
from lm.tokenizers import hf, word
from tests.tiny import WORDS

CONTEXT = "the old dog sees a small red bird near the river"  # 11 words
QUESTION = "dog finds"


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tokenizer = word.Tokenizer(kind="word", special={})
    tokenizer.make(lambda: iter([" ".join(WORDS)]), folder)
    return tokenizer.load(folder)


def record(answer="red bird", context=CONTEXT, start=None):
    start = context.index(answer) if start is None else start
    fields = {"question": QUESTION, "context": context}
    return Record(fields | {"answers": answer, "starts": start}, "x:1")


def rows(codec, *records, length=12, **options):
    """The rows of records, each with its example; and what is counted."""
    task = span_qa.Objective(**{"question_len": 4} | options)
    layout = task.layout(codec, seq_len=length, pack=False)
    out = index.Rows()

    def encoded():
        for out.record, each in enumerate(records):
            yield each, codec.encode_batch(layout.texts(each))

    layout.write(encoded(), out)
    none = np.zeros(1, np.int64)
    empty = index.Index(tokens=none[:0], spans=none, rows=none, fields={}, facts={})
    transforms = task.transforms(empty, codec, seq_len=length)
    made = []
    for number, row in out.rows:
        example = row
        for transform in transforms:
            example = transform(example, np.random.default_rng(0))
        made.append((number, row, example))
    return made, out.counts


def test_windows_by_hand(codec):
    """12 places, 3 of [CLS] and [SEP], 2 of the question: windows of 7, 3 apart."""
    made, counts = rows(codec, record(), stride=3)
    words = codec.encode(CONTEXT)
    windows = [row["pieces"][1].tolist() for _, row, _ in made]
    assert windows == [words[0:7], words[3:10], words[6:11]]
    # Distances to the nearer edge: 0 1 2 3 2 1 0 | 0 1 2 3 2 1 0 | 0 1 2 1 0.
    read = [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert [row["read"].tolist() for _, row, _ in made] == read
    # "red bird" are words 6 and 7: half of it, all, all.
    assert [(row["start"], row["end"]) for _, row, _ in made] == [
        (-1, -1),
        (3, 4),
        (0, 1),
    ]
    assert [ex["labels"].tolist() for _, _, ex in made] == [[0, 0], [7, 8], [4, 5]]
    assert [int(ex["label_weights"]) for _, _, ex in made] == [1, 1, 1]
    for (_, row, example), own in zip(made, read):
        inside = [MAY_BEGIN if each else MAY_END for each in own]
        tail = [0] * (12 - 4 - len(own))
        assert example["candidates"].tolist() == [0] * 4 + inside + tail
        ids = [codec.cls_id, *codec.encode(QUESTION), codec.sep_id]
        ids += [*row["pieces"][1].tolist(), codec.sep_id]
        assert example["inputs"][: len(ids)].tolist() == ids
        assert example["token_types"].tolist() == [0] * 4 + [1] * (len(own) + 1) + [
            0
        ] * (7 - len(own))
    assert counts == {"too_long_window": 1}
    assert {number for number, _, _ in made} == {0}


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 50, None])
@pytest.mark.parametrize("separators", [1, 2])
def test_every_token_is_read_once_and_every_short_answer_whole_somewhere(
    codec, stride, separators
):
    """An answer has its window, unless the windows overlap by less than its tokens."""
    for first, size in itertools.product(range(11), (1, 2, 3)):
        words = CONTEXT.split()[first : first + size]
        start = len(" ".join([*CONTEXT.split()[:first], ""]))
        answer = record(" ".join(words), start=start)
        made, _ = rows(codec, answer, stride=stride, separators=separators)
        size = len(words)
        room = 12 - 2 - separators - 2
        whole = [row for _, row, _ in made if row["start"] >= 0]
        step = min(stride or room // 2, room)
        assert whole or room - step < size - 1
        for row in whole:
            begin, end = row["begins"][row["start"]], row["ends"][row["end"]]
            assert CONTEXT[begin:end] == " ".join(words)
        reads = sum(int(row["read"].sum()) for _, row, _ in made)
        assert reads == 11
        for _, row, example in made:
            if row["start"] >= 0:
                ids = example["inputs"][example["labels"][0] : example["labels"][1] + 1]
                assert ids.tolist() == codec.encode(" ".join(words))


def test_what_does_not_fit(codec):
    long = record()
    with pytest.raises(DataError, match=r"x:1: found 11 tokens of context and 2"):
        rows(codec, long, too_long="error")
    made, counts = rows(codec, long, record("the old"), too_long="cut")
    assert [row["cut"] for _, row, _ in made] == [4, 4]
    # "red bird" is the seventh and the eighth word, cut in two.
    assert [row["start"] for _, row, _ in made] == [-1, 0]
    assert counts == {"too_long_cut": 2}
    made, counts = rows(codec, long, record("dog", "a dog sees"), too_long="skip")
    assert [number for number, _, _ in made] == [1] and counts == {"too_long_skip": 1}
    made, counts = rows(codec, record("dog", "a dog"), question_len=1)
    assert made[0][1]["cut"] == 1 and counts == {"long_questions_cut": 1}
    assert made[0][2]["labels"].tolist() == [4, 4]
    with pytest.raises(ConfigError, match="at least 8"):
        rows(codec, long, length=7)


def test_no_answer_and_no_token(codec):
    """None points to [CLS]; one of spaces is not learnt; a context may be empty."""
    blank = record("  ", "dog  sees")
    given = (record(""), blank, record("", ""))
    made, counts = rows(codec, *given, length=24)
    assert [ex["labels"].tolist() for _, _, ex in made] == [[0, 0]] * 3
    assert [float(ex["label_weights"]) for _, _, ex in made] == [1, 0, 1]
    assert made[2][2]["candidates"].tolist() == [0] * 24
    assert counts == {"answers_without_tokens_skip": 1}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            {"starts": 13},
            "the answer 'red bird' at character 13, where the context has",
        ),
        ({"starts": -1}, "at character -1, where the context has nothing"),
        ({"starts": 4.0}, "at character 4.0"),
        ({"starts": (19, 19)}, "1 answers and 2 starts"),
        ({"answers": 3}, "answers (3,)"),
        ({"context": 3}, "context 3"),
    ],
)
def test_a_bad_answer_is_refused(codec, change, found):
    bad = Record(record().fields | change, "x:7")
    with pytest.raises(DataError) as caught:
        rows(codec, bad)
    assert str(caught.value).startswith("x:7") and found in str(caught.value)


def test_an_unlabelled_question_needs_no_answer(codec):
    fields = {"question": QUESTION, "context": CONTEXT}
    task = span_qa.Objective(question_len=4).unlabelled()
    layout = task.layout(codec, seq_len=12, pack=False)
    assert layout.texts(Record(fields, "x:1")) == [QUESTION, CONTEXT]


def test_tokens_that_cover_characters():
    spans = [(0, 0), (0, 3), (3, 6), (6, 6), (7, 9), (7, 9), (9, 12)]
    assert questions.covering(spans, 0, 3) == (1, 1)
    assert questions.covering(spans, 2, 4) == (1, 2)
    assert questions.covering(spans, 6, 8) == (4, 5)
    assert questions.covering(spans, 6, 7) is None
    assert questions.covering(spans, 3, 3) is None
    assert questions.covering(spans, 0, 99) == (1, 6)


@pytest.mark.parametrize("length", [128, 384])
def test_every_real_answer_is_found_again(test_data, tmp_path, length):
    """By the tokens of WordPiece; 10 first answers begin or end within a token."""
    vocab = test_data("vocab_bert_base_uncased") / "vocab.txt"
    tokenizer = hf.Tokenizer(kind="wordpiece", path=str(vocab), lowercase=True)
    tokenizer.make(lambda: iter(()), tmp_path)
    codec = tokenizer.load(tmp_path)
    file = test_data("qa_squad11_dev_part") / "valid.json"
    records = [*squad.Source(files=str(file)).records()]
    made, counts = rows(codec, *records, length=length, question_len=64, stride=32)
    assert {number for number, _, _ in made} == {*range(1466)}
    assert "answers_without_tokens_skip" not in counts
    inexact, found = set(), set()
    for number, row, _ in made:
        if row["start"] < 0:
            continue
        found.add(number)
        fields = records[number].fields
        begin, end = row["begins"][row["start"]], row["ends"][row["end"]]
        start, text = fields["starts"][0], fields["answers"][0]
        assert begin <= start and start + len(text) <= end
        if fields["context"][begin:end] != text:
            inexact.add(number)
    assert len(inexact) == 10 and len(found) == 1466
