"""Answers to a question, put together of what its rows say (Devlin et al. 2019)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """A possible answer.

    Attributes:
      text: the characters `start` to `end` - 1 of the context; "" for no answer, both
        None.
      score: the sum of the logits of its first and its last token.
      probability: the share of exp(score) among the candidates of the question.
    """

    text: str
    start: int | None
    end: int | None
    score: float
    probability: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """Returns the candidate as files of predictions have it."""
        return {
            "answer": self.text,
            "score": round(self.score, 6),
            "probability": round(self.probability, 6),
            "start": self.start,
            "end": self.end,
        }


class Found(NamedTuple):
    """What the rows of a question say together.

    Attributes:
      answer: the answer by the threshold.
      best: the best part of the context, whatever the threshold; of text "" and score
        -inf where no row has one.
      candidates: the best ones, the first the best, no two with the same text; with a
        threshold, or without any other, also that of text "".
      null_score: of no answer, the least of all rows.
    """

    answer: Candidate
    best: Candidate
    candidates: list[Candidate]
    null_score: float

    @property
    def null_odds(self) -> float:
        """How much better no answer is than the best part of the context."""
        return self.null_score - self.best.score


def candidates_of(
    context: str, row: Mapping[str, Any], said: Mapping[str, Any], first: int
) -> Iterator[Candidate]:
    """Yields the candidates of a row, cut from the context.

    Args:
      row: `begins`, `ends` and `read` of its window (lm/data/questions.py).
      said: `starts`, `ends` and `scores`, the best spans of places of the row.
      first: the place of the window's first token.
    """
    size = len(row["read"])
    for place, last, score in zip(said["starts"], said["ends"], said["scores"]):
        start, end = int(place) - first, int(last) - first
        # Where a row has fewer spans than are asked for, the others are no spans.
        if not (0 <= start <= end < size and row["read"][start]):
            continue
        begin = int(row["begins"][start])
        text = context[begin : int(row["ends"][end])]
        # The pieces of some vocabularies have a space in front.
        begin += len(text) - len(text.lstrip())
        if text := text.strip():
            yield Candidate(text, begin, begin + len(text), float(score))


def conclude(
    candidates: Sequence[Candidate],
    null_scores: Sequence[float],
    n_best: int,
    threshold: float | None,
) -> Found:
    """Chooses among the candidates of all rows of a question.

    Args:
      null_scores: the score of no answer in each row, at least one.
      n_best: how many candidates are kept, beside that of no answer.
      threshold: a question has no answer if the least of these scores is higher than
        the best candidate's by more than this; None: only where there is no candidate.
    """
    texts: dict[str, Candidate] = {}
    for each in sorted(candidates, key=lambda each: -each.score):
        texts.setdefault(each.text, each)
    null = Candidate("", None, None, min(null_scores))
    chosen = [*texts.values()][:n_best]
    best = chosen[0] if chosen else null._replace(score=-math.inf)
    if threshold is not None or not chosen:
        chosen = sorted([*chosen, null], key=lambda each: -each.score)
    # Of scores that are no numbers nothing is to be divided.
    parts = [math.exp(min(each.score - chosen[0].score, 0.0)) for each in chosen]
    total = sum(parts)
    chosen = [c._replace(probability=p / total) for c, p in zip(chosen, parts)]
    most = math.inf if threshold is None else threshold
    text = "" if null.score - best.score > most else best.text
    answer = next(each for each in chosen if each.text == text)
    return Found(answer, best, chosen, null.score)
