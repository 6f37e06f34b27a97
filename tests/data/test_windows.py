"""Windows of causal language modelling: every token said once, whatever the stride."""

import collections

import numpy as np
import pytest

from lm.data.transforms import PadSides
from lm.data.windows import Measure, NextToken, Windows, measure_of
from lm.tokenizers import word
from tests.data.test_index import build, rows

RNG = np.random.default_rng(0)


def said(index):
    """(token before, token) of every target that counts, and all examples."""
    pairs, examples = [], []
    for n in range(len(index)):
        example = NextToken()(index.row(n), RNG)
        examples.append(example)
        kept = example["weights"] > 0
        pairs += zip(example["inputs"][kept], example["targets"][kept])
    return [(chr(a), chr(b)) for a, b in pairs], examples


def test_windows_share_one_token_and_say_each_once(tmp_path):
    index = build(tmp_path, Windows(4, 4, False, None, None), "abcdefghij")
    assert rows(index) == [["abcde"], ["efghi"], ["ij"]]
    assert said(index)[0] == list(zip("abcdefghi", "bcdefghij"))


def test_the_beginning_and_the_end_of_a_text(tmp_path):
    index = build(tmp_path, Windows(8, 8, True, ord("^"), ord("$")), "abc", "de")
    assert rows(index) == [["^abc$", "^de$"]]
    example = NextToken()(index.row(0), RNG)
    assert "".join(map(chr, example["targets"])) == "abc$de$"
    assert example["segment_ids"].tolist() == [1] * 4 + [2] * 3
    assert example["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", range(2, 13))
def test_overlapping_windows_say_each_token_once(tmp_path, stride, length):
    text = "abcdefghijklm"[:length]
    index = build(tmp_path, Windows(4, stride, False, None, None), text)
    pairs, examples = said(index)
    assert pairs == list(zip(text, text[1:]))
    for example in examples[1:]:  # and has so much before it
        first = np.flatnonzero(example["weights"])[0]
        assert first >= 4 - stride


def test_bytes_are_shared_out_by_the_tokens_that_are_said(tmp_path):
    texts = ["abcdefghij", "a b  c"]  # 10 and 6 bytes; white space is no token
    index = build(tmp_path, Windows(4, 4, True, ord("^"), None), *texts)
    assert index.fields["bytes"].sum() == pytest.approx(16)
    overlapping = build(
        tmp_path / "stride", Windows(4, 2, False, ord("^"), None), *texts
    )
    assert overlapping.fields["bytes"].sum() == pytest.approx(16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # What white space separates, and the ends that have a token.
        ({"kind": "char"}, 8 + 2),
        ({"kind": "byte"}, 8 + 2),
        ({"kind": "word"}, 8),
        ({"kind": "word", "line_ends": True, "specials": ("unk", "eos")}, 8 + 3),
    ],
)
def test_words_are_counted_as_their_ends_are_predicted(tmp_path, options, words):
    text = "the old dog\n runs  over\nthe blue hill"
    settings = word.Tokenizer(**options)
    settings.make(lambda: iter([text]), tmp_path)
    codec = settings.load(tmp_path)
    measure = measure_of(codec, ends=False)
    size = float(len(text))
    assert measure(text, []) == (size, words)
    assert measure_of(codec, ends=True)(text, []) == (size, words + 1)
    # The first word is no target where it is the first token.
    first = codec.encode(text)[:1]
    seen = options["kind"] != "word"
    assert measure(text, first) == (size - (1 if seen else 3), words - (not seen))
    # The end of the last line counts once, written or not.
    written = 1 if options["kind"] != "word" else 0
    assert measure(text + "\n", []) == (size + 1, words + written)


def test_words_are_shared_out_by_the_tokens_that_are_said(tmp_path):
    texts = ["ab cd\nef", "gh"]
    measure = Measure("written", True, lambda ids: "".join(map(chr, ids)))
    for stride, first in ((4, ord("^")), (2, ord("^")), (4, None)):
        windows = Windows(4, stride, False, first, ord("$"), measure=measure)
        index = build(tmp_path / f"{stride}-{first}", windows, *texts)
        assert index.fields["words"].sum() == pytest.approx(4 + 1 + 2)


def test_a_text_of_one_token_says_nothing(tmp_path):
    index = build(tmp_path, Windows(4, 4, False, None, None), "a", "bc")
    assert rows(index) == [["bc"]]


def test_packing_loses_nothing_and_fits(tmp_path):
    draw = np.random.default_rng(1)
    texts = ["".join(draw.choice([*"abcdef"], draw.integers(2, 30))) for _ in range(99)]
    index = build(tmp_path, Windows(16, 16, True, None, None), *texts)
    pairs, examples = said(index)
    expected = [pair for text in texts for pair in zip(text, text[1:])]
    assert collections.Counter(pairs) == collections.Counter(expected)
    assert max(len(e["inputs"]) for e in examples) <= 16
    assert len(index) < len(expected) / 16 * 1.2


def test_padding_has_no_segment_and_no_weight(tmp_path):
    index = build(tmp_path, Windows(6, 6, False, None, None), "abc")
    example = PadSides(6, 6, 9)(NextToken()(index.row(0), RNG), RNG)
    assert example["inputs"].tolist() == [97, 98, 9, 9, 9, 9]
    assert example["targets"].tolist() == [98, 99, 9, 9, 9, 9]
    assert example["segment_ids"].tolist() == [1, 1, 0, 0, 0, 0]
    assert example["weights"].tolist() == [1, 1, 0, 0, 0, 0]
