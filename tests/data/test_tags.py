"""Tag schemes: spans, conversion, what is repaired, and what may follow what."""

import itertools

import numpy as np
import pytest

from lm.data import tags

TYPED = ("iob1", "bio", "bioes", "bmes")


def random_spans(rng) -> tuple[list[tags.Span], int]:
    length, at, found = int(rng.integers(1, 9)), 0, []
    while at < length:
        end = min(length, at + int(rng.integers(1, 4)))
        if rng.random() < 0.6:
            found.append((["x", "creative-work"][rng.integers(2)], at, end))
        at = end
    return found, length


def test_every_scheme_keeps_every_span_and_converts_without_loss():
    rng = np.random.default_rng(0)
    for _ in range(300):
        found, length = random_spans(rng)
        for scheme in TYPED:
            written = tags.write(found, length, scheme)
            assert tags.impossible(written, scheme) == -1
            for rule in ("conlleval", "strict"):
                assert tags.spans(written, scheme, rule) == found
            for other in TYPED:
                there = tags.convert(written, scheme, other, repair=False)
                assert tags.convert(there, other, scheme, repair=False) == written


def test_the_letters_of_each_scheme():
    found, length = [("x", 0, 1), ("x", 1, 4), ("y", 4, 6)], 7
    assert {
        scheme: " ".join(tags.write(found, length, scheme)) for scheme in TYPED
    } == {
        "iob1": "I-x B-x I-x I-x I-y I-y O",
        "bio": "B-x B-x I-x I-x B-y I-y O",
        "bioes": "S-x B-x I-x E-x B-y E-y O",
        "bmes": "S-x B-x M-x E-x B-y E-y O",
    }
    with pytest.raises(ValueError, match="two spans of x side by side in scheme 'io'"):
        tags.write(found, length, "io")
    assert tags.write(found[1:], length, "io") == [
        "O",
        "I-x",
        "I-x",
        "I-x",
        "I-y",
        "I-y",
        "O",
    ]


@pytest.mark.parametrize(
    ("text", "scheme", "lenient", "strict", "mended"),
    [
        ("O I-x I-x", "bio", [("x", 1, 3)], [], "O B-x I-x"),
        ("B-x I-y", "bio", [("x", 0, 1), ("y", 1, 2)], [("x", 0, 1)], "B-x B-y"),
        ("B-x I-x O", "bioes", [("x", 0, 2)], [], "B-x E-x O"),
        ("E-x I-x", "bioes", [("x", 0, 1), ("x", 1, 2)], [], "S-x S-x"),
        (
            "M-x B-y E-y",
            "bmes",
            [("x", 0, 1), ("y", 1, 3)],
            [("y", 1, 3)],
            "S-x B-y E-y",
        ),
    ],
)
def test_impossible_sequences_by_the_rule_of_conlleval(
    text, scheme, lenient, strict, mended
):
    found = text.split()
    assert tags.spans(found, scheme) == lenient
    assert tags.spans(found, scheme, "strict") == strict
    assert tags.convert(found, scheme, scheme) == mended.split()
    with pytest.raises(ValueError, match="impossible in"):
        tags.convert(found, scheme, scheme, repair=False)


def test_a_refused_sequence_names_the_word():
    with pytest.raises(ValueError, match="'I-x' of word 2 after 'O', impossible"):
        tags.convert(["O", "I-x"], "bio", "bmes", repair=False)
    with pytest.raises(ValueError, match="'B-x' of word 1 at the end"):
        tags.convert(["B-x"], "bmes", "bio", repair=False)
    with pytest.raises(ValueError, match="'M-x' of word 2 in scheme 'bio'"):
        tags.convert(["O", "M-x"], "bio", "bio")


@pytest.mark.parametrize("scheme", TYPED)
def test_what_is_allowed_is_what_can_be_written(scheme):
    """Enumerate: a sequence is possible if writing its spans gives it again."""
    labels = {"iob1": "IB", "bio": "BI", "bioes": "BIES", "bmes": "BMES"}[scheme]
    names = ["O", *(f"{letter}-{kind}" for kind in "xy" for letter in labels)]
    allowed = tags.allowed_of(names, scheme)
    for ids in itertools.product(range(len(names)), repeat=3):
        sequence = [names[i] for i in ids]
        ways = allowed.start[ids[0]] and allowed.end[ids[-1]]
        ways = ways and all(allowed.pairs[i, j] for i, j in itertools.pairwise(ids))
        same = tags.write(tags.spans(sequence, scheme), 3, scheme) == sequence
        assert ways == same == (tags.impossible(sequence, scheme) == -1), sequence


def test_tags_of_words_and_the_scheme_that_labels_show():
    roles = ["ARG0", "V", "_", "ARGM-TMP"]
    found = tags.spans(roles, "word", outside=("_", "V"))
    assert found == [("ARG0", 0, 1), ("ARGM-TMP", 3, 4)]
    assert tags.guess_scheme(["O", "B-PER", "I-PER"]) == "bio"
    assert tags.guess_scheme(["O", "I-PER", "I-LOC"]) == "io"
    assert tags.guess_scheme(["B-x", "M-x", "E-x", "S-x", "O"]) == "bmes"
    assert tags.guess_scheme(["B-x", "I-x", "E-x", "S-x", "O"]) == "bioes"
    assert tags.guess_scheme(["NOUN", "VERB", "ADJ"]) == "word"
    assert tags.guess_scheme(["LABEL_0", "LABEL_1"]) == "word"
    assert tags.guess_scheme(roles) == "word"
