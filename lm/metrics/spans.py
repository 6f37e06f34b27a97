"""Precision, recall and F1 of labelled spans, such as entities (CoNLL's evaluation).

A span is (type, first word, word after the last). One is correct where a predicted span
of the same sentence has the same type and the same words.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from lm.metrics import statistics

Span = tuple[str, int, int]
Sentences = Sequence[Iterable[Span]]


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many spans each sentence has, by type: S sentences, K types.

    Attributes:
      types: sorted; those of gold spans and of predicted ones.
      gold, predicted, correct: (S, K) numbers of spans.
    """

    types: tuple[str, ...]
    gold: Int[np.ndarray, "S K"]
    predicted: Int[np.ndarray, "S K"]
    correct: Int[np.ndarray, "S K"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Precision, recall and F1, from 0 to 1; 0 where nothing is there to be divided."""

    precision: float
    recall: float
    f1: float


def count(gold: Sentences, predicted: Sentences) -> Counts:
    """Counts the spans of a set of sentences by type."""
    pairs = [({*right}, {*guess}) for right, guess in zip(gold, predicted, strict=True)]
    types = sorted({kind for pair in pairs for side in pair for kind, _, _ in side})
    numbers = {kind: k for k, kind in enumerate(types)}
    made = np.zeros((3, len(pairs), len(types)), np.int64)
    for row, (right, guess) in enumerate(pairs):
        for part, side in enumerate((right, guess, right & guess)):
            for kind, _, _ in side:
                made[part, row, numbers[kind]] += 1
    return Counts(tuple(types), *made)


def score(gold: int, predicted: int, correct: int) -> Score:
    """Computes precision, recall and F1 of numbers of spans."""
    return Score(
        correct / max(predicted, 1),
        correct / max(gold, 1),
        2 * correct / max(gold + predicted, 1),
    )


def micro(counts: Counts) -> Score:
    """Computes the score over the spans of all types."""
    found = (counts.gold, counts.predicted, counts.correct)
    return score(*(int(part.sum()) for part in found))


def by_type(counts: Counts) -> dict[str, Score]:
    """Computes the score of each type."""
    found = (part.sum(0).tolist() for part in _parts(counts))
    return {k: score(*numbers) for k, *numbers in zip(counts.types, *found)}


def macro(counts: Counts) -> float:
    """Computes the mean of the types' F1; a type that is only predicted counts."""
    scores = [each.f1 for each in by_type(counts).values()]
    return float(np.mean(scores)) if scores else 0.0


def weighted(counts: Counts) -> float:
    """Computes the mean of the types' F1, weighted by their numbers of gold spans."""
    total = counts.gold.sum()
    scores = [each.f1 for each in by_type(counts).values()]
    return float(counts.gold.sum(0) @ scores / total) if total else 0.0


def surface(
    words: Sequence[Sequence[str]], gold: Sentences, predicted: Sentences, join: str
) -> Score:
    """Computes the score over the set of different (text, type) (Derczynski 2017).

    Args:
      join: what stands between the words of a span in its text.
    """

    def forms(sentences: Sentences) -> set[tuple[str, str]]:
        return {
            (join.join(words[row][start:end]), kind)
            for row, found in enumerate(sentences)
            for kind, start, end in found
        }

    right, guess = forms(gold), forms(predicted)
    return score(len(right), len(guess), len(right & guess))


def resampled(
    counts: Counts, samples: int, seed: int, level: float = 0.95
) -> dict[str, statistics.Interval]:
    """Computes bootstrap intervals over sentences (Efron 1979).

    Args:
      samples: how often as many sentences are drawn with replacement.
      level: share of the samples within the interval.

    Returns:
      Those of `precision`, `recall` and `f1` (micro), `macro_f1` and `weighted_f1`.
    """
    drawn = statistics.draw(np.concatenate(_parts(counts), axis=1), samples, seed)
    gold, guess, right = drawn.reshape(samples, 3, -1).transpose(1, 0, 2)
    f1, there = 2 * right / np.maximum(gold + guess, 1), gold + guess > 0
    golds, guesses, rights = gold.sum(1), guess.sum(1), right.sum(1)
    found = {
        "precision": rights / np.maximum(guesses, 1),
        "recall": rights / np.maximum(golds, 1),
        "f1": 2 * rights / np.maximum(golds + guesses, 1),
        "macro_f1": (f1 * there).sum(1) / np.maximum(there.sum(1), 1),
        "weighted_f1": (f1 * gold).sum(1) / np.maximum(golds, 1),
    }
    return {k: statistics.percentiles(each, level) for k, each in found.items()}


def confusions(
    gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> collections.Counter[tuple[str, str]]:
    """Counts the pairs (gold tag, predicted tag) of all words."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for right, guess in zip(gold, predicted, strict=True):
        found.update(zip(right, guess, strict=True))
    return found


def _parts(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.gold, counts.predicted, counts.correct
