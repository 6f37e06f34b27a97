"""What plain methods reach, to hold a model's figures against.

Rows are the token ids of one text or two; no model or tokenizer is needed.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

Texts = Sequence[np.ndarray]  # the token ids of each text of a row
Rows = Sequence[Texts]
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\d\"'(])")
WORD = re.compile(r"\w+(?:[-.,'’]\w+)*")
MOST = 100_000  # training rows; more are slow and change little


def majority(
    train: Int[np.ndarray, "n"], classes: int, rows: int
) -> Float[np.ndarray, "rows classes"]:
    """Returns for each row the shares of the classes among the training rows."""
    shares = np.bincount(train, minlength=classes) / max(len(train), 1)
    return np.tile(shares, (rows, 1))


def bag_of_words(
    rows: Rows, labels: Int[np.ndarray, "n"], classes: int, asked: Rows
) -> Float[np.ndarray, "asked classes"]:
    """Predicts classes by logistic regression on TF-IDF of tokens and of their pairs.

    Args:
      rows, labels: of training; of more than MOST rows every k-th is used.
      asked: the rows to predict.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    step = -(-len(rows) // MOST)
    vectors = TfidfVectorizer(analyzer=_grams, sublinear_tf=True)
    known = vectors.fit_transform(rows[::step])
    return _logistic(known, labels[::step], classes, vectors.transform(asked))


def overlap(rows: Rows) -> Float[np.ndarray, "n"]:
    """Computes the Jaccard index of the tokens of two texts; 0 of two empty ones."""
    sets = [[set(text.tolist()) for text in texts] for texts in rows]
    return np.array([len(a & b) / max(len(a | b), 1) for a, b in sets], np.float64)


def overlap_classes(
    rows: Rows, labels: Int[np.ndarray, "n"], classes: int, asked: Rows
) -> Float[np.ndarray, "asked classes"]:
    """Predicts classes by logistic regression on the overlap of two texts."""
    known, wanted = overlap(rows)[:, None], overlap(asked)[:, None]
    return _logistic(known, labels, classes, wanted)


def overlap_numbers(
    rows: Rows, labels: Float[np.ndarray, "n"], asked: Rows
) -> Float[np.ndarray, "asked"]:
    """Predicts numbers by the straight line through the overlap of two texts."""
    slope, start = np.polyfit(overlap(rows), labels.astype(np.float64), 1)
    return start + slope * overlap(asked)


def nearest_name(question: str, context: str) -> str:
    """Answers with the first name or number of the sentence most like the question.

    That sentence shares most words with the question. A name is a run of words with a
    capital or a digit, none of which is in the question; without one, the answer is the
    longest run of words that are not in it.
    """
    asked = {word.lower() for word in WORD.findall(question)}
    sentences = SENTENCE.split(context)
    shared = [len(asked & {*map(str.lower, WORD.findall(s))}) for s in sentences]
    sentence = sentences[int(np.argmax(shared))]
    words = [m for m in WORD.finditer(sentence) if m.group().lower() not in asked]
    # A capital at the start of a sentence tells nothing.
    names = [m for m in words if not m.group().islower() and m.start()]
    runs: list[tuple[int, int]] = []
    for match in names or words:
        if runs and not sentence[runs[-1][1] : match.start()].strip():
            runs[-1] = runs[-1][0], match.end()
        else:
            runs.append(match.span())
    if not runs:
        return ""
    start, end = runs[0] if names else max(runs, key=lambda run: run[1] - run[0])
    return sentence[start:end]


def _grams(texts: Texts) -> Iterable[tuple[int, ...]]:
    """Yields the tokens of each text and their pairs, with the number of the text."""
    for number, text in enumerate(texts):
        ids = text.tolist()
        yield from ((number, token) for token in ids)
        yield from ((number, *pair) for pair in zip(ids, ids[1:]))


def _logistic(
    known: Any, labels: Shaped[np.ndarray, "n"], classes: int, asked: Any
) -> Float[np.ndarray, "asked classes"]:
    """Predicts classes; a class without a training row has probability 0."""
    from sklearn.linear_model import LogisticRegression

    held = np.unique(labels)
    found = np.zeros((asked.shape[0], classes))
    if len(held) == 1:
        found[:, held[0]] = 1
        return found
    fitted = LogisticRegression(C=10.0, max_iter=200).fit(known, labels)
    found[:, fitted.classes_] = fitted.predict_proba(asked)
    return found
