"""Exact match and F1 of answers, as the official programs of SQuAD compute them.

Rajpurkar et al. 2016, section 6.1; Rajpurkar et al. 2018, section 5. A question without
an answer has the one answer "".
"""

import collections
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower-cases a text; takes punctuation, articles and superfluous spaces out."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """Returns 1 where the normalised texts are equal, otherwise 0."""
    return float(normalize(answer) == normalize(reference))


def f1(answer: str, reference: str) -> float:
    """Computes the F1 of the normalised words of two texts, as bags.

    Where one of them has no words it is 1 if the other has none either.
    """
    own, right = normalize(answer).split(), normalize(reference).split()
    if not own or not right:
        return float(own == right)
    shared = (collections.Counter(own) & collections.Counter(right)).total()
    return 2 * shared / (len(own) + len(right))


def best_of(
    metric: Callable[[str, str], float], answer: str, references: Sequence[str]
) -> float:
    """Returns the highest value over the references of a question.

    References without any word count only where all of them are.
    """
    kept = [text for text in references if normalize(text)] or [""]
    return max(metric(answer, text) for text in kept)


class Threshold(NamedTuple):
    """The mean score at the best threshold, and that threshold."""

    score: float
    threshold: float


def best_threshold(
    scores: Float[np.ndarray, "n"],
    null_scores: Float[np.ndarray, "n"],
    odds: Float[np.ndarray, "n"],
) -> Threshold:
    """Finds the threshold of the odds above which no answer is given.

    Args:
      scores: of each question, answered.
      null_scores: of each question, without an answer given.
      odds: of each question, how much no answer is preferred.

    Returns:
      Of several best thresholds the least; one below all odds answers nothing.
    """
    order = np.argsort(odds, kind="stable")
    gains = np.cumsum((scores - null_scores)[order])
    totals = np.concatenate([[0.0], gains]) + null_scores.sum()
    # Questions of equal odds are answered together or not at all.
    limits = np.concatenate([[min(odds.min(), 0.0) - 1], odds[order]])
    apart = np.append(limits[1:] > limits[:-1], True)
    best = int(np.argmax(np.where(apart, totals, -np.inf)))
    return Threshold(float(totals[best]) / len(scores), float(limits[best]))
