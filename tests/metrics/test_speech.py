"""Error rates against a written-out recursion and stored figures of jiwer 4.0.0."""

import functools
import math

import numpy as np

from lm.metrics import speech

# Random pairs, and their word and character errors by jiwer.
PAIRS = [
    ("d a c e d d c", "d a c b a d e"),
    ("c a f", "f f"),
    ("e d d e", "e d d e"),
    ("c b f c f a b e", "b f c f a b e"),
    ("b e e e c d a e d", "b b b f a b a e d"),
    ("f d f e c e b b f", "f d f e c b b e"),
    ("a f c a", "a d a"),
    ("a e f e", "a a a f e"),
    ("e", "f b"),
    ("e", "f"),
    ("c d b a e", "c a d b a"),
    ("b c e", "e c e"),
]


def by_recursion(reference, hypothesis):
    """(errors, insertions), the fewest errors and then the fewest insertions."""

    @functools.cache
    def least(i, j):
        if not i or not j:
            return i + j, j
        errors, inserted = least(i - 1, j - 1)
        ways = [(errors + (reference[i - 1] != hypothesis[j - 1]), inserted)]
        errors, inserted = least(i - 1, j)
        ways.append((errors + 1, inserted))
        errors, inserted = least(i, j - 1)
        ways.append((errors + 1, inserted + 1))
        return min(ways)

    return least(len(reference), len(hypothesis))


def test_errors_are_those_of_the_recursion():
    rng = np.random.default_rng(0)
    for length in (0, 1, 6):
        reference = rng.choice([*"abcd"], length).tolist()
        others = [rng.choice([*"abcd"], n).tolist() for n in (0, 1, 3, 6, 9, 9)]
        for found, hypothesis in zip(speech.count(reference, others), others):
            total, inserted = by_recursion(reference, hypothesis)
            assert (found.total, found.insertions) == (total, inserted)
            # What is deleted less what is inserted is what the lengths differ by.
            assert length - found.deletions + inserted == len(hypothesis)
            assert min(found) >= 0 and found.length == length


def test_rates_are_those_of_jiwer():
    words = [speech.count(r.split(), [h.split()])[0] for r, h in PAIRS]
    total = speech.add(words)
    assert total.rate == 0.39655172413793105 and total.total == 15 + 5 + 3
    letters = speech.add([speech.count(r, [h])[0] for r, h in PAIRS])
    assert letters.rate == 0.2980769230769231
    assert math.isnan(speech.add([]).rate)


def test_forms_of_texts():
    assert speech.plain("It's 'Der Größe', OK?").split() == [
        "it's",
        "der",
        "größe",
        "ok",
    ]
    assert speech.FORMS["lower"]("A, b") == "a, b"
