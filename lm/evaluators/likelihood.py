"""Log-probabilities of texts, for commands and evaluators: rows in few shapes."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data import buckets
from lm.data.scoring import Arrays, Settings, Text
from lm.errors import DataError, NumericalError
from lm.host import inputs
from lm.objectives.base import Objective
from lm.tokenizers.base import Codec

TOKENS = 4096  # of a batch, padding included
LONGEST = 1 << 30  # tokens of a row of a model without limit
PLAIN = Settings()
AHEAD = 2  # batches that the devices compute before the first is read

# (log p of each target, whether it is the most probable token), shaped as `weights`
Judged = tuple[Any, Any]


class Score(NamedTuple):
    """The log-probabilities of the tokens of a text.

    Attributes:
      ids: the tokens that are scored.
      log_probs: of each, in nats.
      best: for each, whether no other token is more probable.
      unscored: tokens at the beginning of the text that follow nothing.
      cut: how many tokens of the context the model did not read.
      whole: whether only the total has a meaning.
    """

    ids: list[int]
    log_probs: np.ndarray
    best: np.ndarray
    unscored: tuple[int, ...] = ()
    cut: int = 0
    whole: bool = False

    @property
    def total(self) -> float:
        """The log-probability of the text in nats."""
        return float(self.log_probs.sum())


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A model that scores texts.

    Attributes:
      objective: makes the rows of a text; offers "score".
      codec: the tokenizer.
      context: the longest row of the model, None: any length.
      judge: computes a batch of the host.
      shards: the rows of a batch are a multiple of this number.
      tokens: tokens of a batch, padding included.
    """

    objective: Objective
    codec: Codec
    context: int | None
    judge: Callable[[Arrays], Judged]
    shards: int = 1
    tokens: int = TOKENS

    def __call__(
        self, texts: Sequence[Text], settings: Settings = PLAIN
    ) -> list[Score]:
        """Scores texts; that of one depends on the others by no more than rounding.

        Raises:
          DataError: a source or a target is longer than the model can read.
          NumericalError: a log-probability is NaN.
        """
        scores: list[Score] = []
        batches = self._batches(texts, settings, scores)
        running: collections.deque[tuple[list[_Place], Judged]] = collections.deque()
        for places, batch in batches:
            running.append((places, self.judge(batch)))
            if len(running) > AHEAD:
                _collect(scores, *running.popleft())
        while running:
            _collect(scores, *running.popleft())
        for text, score in zip(texts, scores):
            if np.isnan(score.log_probs).any():
                raise NumericalError(
                    text.where,
                    "NaN as the log-probability of a token",
                    "a number",
                    "the weights or the computation (compute.dtype) are broken",
                )
        return scores

    def figures(
        self, texts: Sequence[Text], settings: Settings, *, per_token: bool = False
    ) -> list[dict[str, Any]]:
        """Scores texts; returns the figures of each (`describe`) and its `measure`."""
        measure = self.objective.measure(settings)
        return [
            describe(score, text, self.codec, per_token=per_token)
            | {"measure": measure}
            for score, text in zip(self(texts, settings), texts)
        ]

    def _batches(
        self, texts: Sequence[Text], settings: Settings, scores: list[Score]
    ) -> Iterator[tuple[list["_Place"], Arrays]]:
        """Yields the batches of all rows, and appends an empty score for each text."""
        waiting: dict[int, list[tuple[_Place, Arrays]]] = collections.defaultdict(list)
        for number, text in enumerate(texts):
            scored = self.objective.score_rows(
                self.codec, text, settings, limit=self.context
            )
            count, done = len(scored.ids), 0
            empty = np.zeros(count), np.zeros(count, bool)
            scores.append(
                Score(scored.ids, *empty, scored.unscored, scored.cut, scored.whole)
            )
            for row in scored.rows:
                size = max(len(a) for name, a in row.items() if name.endswith("inputs"))
                self._check(size, text)
                length = buckets.round_up(size, self.context or LONGEST)
                targets = row["weights"] > 0
                waiting[length].append((_Place(number, done, targets), row))
                done += int(targets.sum())
                if len(waiting[length]) == self._rows(length):
                    yield self._batch(waiting.pop(length), length)
        for length, rows in sorted(waiting.items()):
            yield self._batch(rows, length)

    def _check(self, size: int, text: Text) -> None:
        if self.context is not None and size > self.context:
            raise DataError(
                text.where,
                f"a text of {size} tokens",
                f"at most {self.context}, which the model can read",
                "shorten it",
            )

    def _rows(self, length: int, count: int | None = None) -> int:
        """Returns the rows of a batch: a full one, or a quarter of it, and so on.

        Args:
          count: how many rows it must have; None: a full one.
        """
        full = max(self.tokens // length, 1)
        while count is not None and full // 4 >= count:
            full //= 4
        return -(-full // self.shards) * self.shards

    def _batch(
        self, rows: list[tuple["_Place", Arrays]], length: int
    ) -> tuple[list["_Place"], Arrays]:
        """Pads rows to one length, and adds rows of weight 0 up to a whole batch."""
        count, first = self._rows(length, len(rows)), rows[0][1]
        along = {name: len(a) for name, a in first.items()}
        single = "target_positions" in first
        batch: Arrays = {}
        for name, array in first.items():
            own = single and name in ("targets", "weights", "target_positions")
            shape = (count, along[name] if own else length)
            tokens = name.endswith("inputs") or name == "targets"
            fill = (self.codec.pad_id or 0) if tokens else 0
            batch[name] = np.full(shape, fill, array.dtype)
            for n, (_, row) in enumerate(rows):
                batch[name][n, : len(row[name])] = row[name]
        for name in batch:
            if not name.endswith("weights"):
                batch[name][len(rows) :] = batch[name][0]
        return [place for place, _ in rows], batch


class _Place(NamedTuple):
    """Where the targets of a row stand: in text `number`, from token `first` on."""

    number: int
    first: int
    targets: np.ndarray


def _collect(scores: list[Score], places: list[_Place], judged: Judged) -> None:
    """Writes what was computed of a batch to the scores of its texts."""
    log_probs, best = (np.asarray(array) for array in judged)
    for row, place in enumerate(places):
        at = np.flatnonzero(place.targets)
        own = slice(place.first, place.first + len(at))
        scores[place.number].log_probs[own] = log_probs[row, at]
        scores[place.number].best[own] = best[row, at]


# ── In and out ──────────────────────────────────────────────────────────────────────


def text_of(row: dict[str, Any], where: str, objective: Objective) -> Text:
    """Returns the text that a row of fields asks for.

    Raises:
      DataError: the row has other fields than the objective reads, or no texts.
    """
    forms = objective.score_fields
    example = " or ".join(
        "{" + ", ".join(f'"{name}": "..."' for name in fields) + "}" for fields in forms
    )
    for fields in forms:
        if all(name in row for name in fields):
            *before, text = (
                inputs.text_field(row, name, where, example) for name in fields
            )
            return Text(text, before[0] if before else "", where)
    names = ", ".join(map(repr, row)) or "nothing"
    raise DataError(where, f"a row with {names}", example)


def describe(
    score: Score, text: Text, codec: Codec, *, per_token: bool = False
) -> dict[str, Any]:
    """Returns the figures of a score as JSON has them; None where one is not defined.

        log_prob          of the text, in nats; None where it is impossible
        tokens, bytes     that are scored; an end token has no bytes
        perplexity        exp(-log_prob / tokens)
        bits_per_byte     -log_prob in bits, divided by the bytes
        unknown           how many tokens are the tokenizer's unknown token
        unknown_log_prob  of these tokens
        greedy            whether each token is the most probable one
        unscored, cut     see `Score`; the number of tokens

    Of a text that has a probability as a whole, what is of tokens is not defined.

    Args:
      per_token: whether to add `token_texts` and `token_log_probs`.
    """
    total, count = score.total, len(score.ids)
    size = len(text.text.encode()) - len(codec.decode(score.unscored).encode())
    possible = math.isfinite(total)
    unknown = np.asarray([id == codec.unk_id for id in score.ids], bool)
    bits = -total / math.log(2)
    found: dict[str, Any] = {
        "log_prob": _number(total),
        "tokens": count,
        "bytes": max(size, 0),
        "perplexity": exp(-total / count) if count and possible else None,
        "bits_per_byte": bits / size if size > 0 and possible else None,
        "unknown": int(unknown.sum()),
        "unknown_log_prob": None
        if score.whole
        else _number(float(score.log_probs[unknown].sum())),
        "greedy": None if score.whole else bool(score.best.all()),
        "unscored": len(score.unscored),
        "cut": score.cut,
    }
    if per_token:
        found["token_texts"] = [codec.token(id) for id in score.ids]
        each = [*map(_number, score.log_probs.tolist())]
        found["token_log_probs"] = None if score.whole else each
    return found


def _number(value: float) -> float | None:
    """Rounds to what float32 can tell; None for minus infinity, which JSON lacks."""
    return round(value, 6) if math.isfinite(value) else None


def exp(value: float) -> float:
    """Returns e to a power, at most that of 700: beyond 709 a float overflows."""
    return math.exp(min(value, 700.0))
