"""Texts whose log-probability is asked for, as rows of which some tokens are targets.

The protocol is that of the common harnesses for multiple choice and perplexity: white
space at the end of a context belongs to what follows; the tokens of both together, less
as many as the context alone has, are those of the continuation; a text without context
follows the beginning of a text; of a context that is too long, the left end is cut.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lm.tokenizers.base import Codec

BOUNDS = {"length": "[1, 16777216]", "stride": "[1, 16777216]"}

Arrays = dict[str, np.ndarray]  # a row that is not padded, without the axis of rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are scored.

    Attributes:
      end: whether the end token after a text is scored too, as the target of a source
        always has it.
      length: the most tokens that the model reads at a time; None is its context, or no
        limit where it has none.
      stride: how many tokens a further window of a long text scores; the rest is
        context. None is `length`, and each token is read once.
      hide: what a masked model does not see of the word whose token it predicts: that
        token alone (Salazar et al. 2020), or also the later tokens of the word (Kauf
        and Ivanova 2023).
    """

    end: bool = False
    length: int | None = None
    stride: int | None = None
    hide: Literal["token", "rest_of_word"] = "token"


class Text(NamedTuple):
    """A text to be scored.

    Attributes:
      text: whose tokens are scored.
      context: the text before it, or its source.
      where: its place, for errors.
    """

    text: str
    context: str = ""
    where: str = "text"


class Scored(NamedTuple):
    """The tokens of a text that are scored, and the rows by which they are.

    Attributes:
      ids: the tokens in their order.
      rows: of arrays as in a batch (lm/objectives/base.py); their targets of weight 1,
        row by row, are `ids`.
      unscored: tokens at the beginning of the text that follow nothing.
      cut: how many tokens of the context no row has.
      whole: whether the text alone has a probability, and none of its tokens.
    """

    ids: list[int]
    rows: Iterable[Arrays]
    unscored: tuple[int, ...] = ()
    cut: int = 0
    whole: bool = False


def split(codec: Codec, text: Text) -> tuple[list[int], list[int]]:
    """Encodes a context and its continuation together; returns the ids of each."""
    context = text.context.rstrip()
    whole = codec.encode(text.context + text.text)
    before = codec.encode(context) if context else []
    last = before[-1:]
    if last == [codec.eos_id] and whole[len(before) - 1 : len(before)] != last:
        del before[-1]  # A tokenizer that ends lines has ended that of the context.
    return before, whole[len(before) :]


def with_end(ids: Sequence[int], end: int) -> list[int]:
    """Returns ids that end with the end token, which some tokenizers have added."""
    return [*ids] if ids and ids[-1] == end else [*ids, end]


class Window(NamedTuple):
    """Tokens that are read together: `start` to `stop` - 2, to predict `first` on."""

    start: int
    first: int
    stop: int


def windows(
    total: int, first: int, length: int | None, stride: int | None = None
) -> Iterator[Window]:
    """Cuts a text into windows; each token from `first` on is predicted in one of them.

    A window reads the `length` tokens before its last one. The first window predicts as
    many as it can, the others `stride`.

    Args:
      total: the number of tokens.
      length: None: one window has all of them.
    """
    length = length or total
    step = length
    while first < total:
        stop = min(first + step, total)
        yield Window(max(0, stop - 1 - length), first, stop)
        first, step = stop, min(stride or length, length)


def left_to_right(
    before: Sequence[int],
    ids: Sequence[int],
    settings: Settings,
    limit: int | None,
    *,
    prefix: bool = False,
) -> Scored:
    """Makes rows that predict each token from those before it.

    Args:
      before: the tokens before the text; without any, its first token is not scored.
      ids: the tokens of the text.
      limit: how many tokens the model can read at a time.
      prefix: whether rows have the array `prefix`, which marks `before`.
    """
    unscored = () if before else tuple(ids[:1])
    tokens = np.asarray([*before, *ids], np.int32)
    first = max(len(before), 1)
    length = min(x for x in (settings.length, limit, len(tokens)) if x is not None)
    cuts = [*windows(len(tokens), first, max(length, 1), settings.stride)]

    def rows() -> Iterator[Arrays]:
        for window in cuts:
            places = np.arange(window.start, window.stop - 1, dtype=np.int32)
            row = {
                "inputs": tokens[window.start : window.stop - 1],
                "positions": places - window.start,
                "segment_ids": np.ones(len(places), np.int32),
                "targets": tokens[window.start + 1 : window.stop],
                "weights": (places + 1 >= window.first).astype(np.float32),
            }
            yield row | ({"prefix": places < len(before)} if prefix else {})

    cut = min(cuts[0].start, len(before)) if cuts else 0
    return Scored([*ids[len(unscored) :]], rows(), unscored, cut)


def target_given_source(
    source: Sequence[int], start: int, ids: Sequence[int]
) -> Scored:
    """Makes the row of an encoder's source and the target that a decoder predicts.

    Args:
      source: the tokens that the encoder reads.
      start: the decoder's first input.
      ids: the tokens of the target, with the end token.
    """
    row = _sequence(source, "source_") | _sequence([start, *ids[:-1]], "")
    row |= {
        "targets": np.asarray(ids, np.int32),
        "weights": np.ones(len(ids), np.float32),
    }
    return Scored([*ids], [row])


def _sequence(ids: Sequence[int] | np.ndarray, side: str) -> Arrays:
    return {
        f"{side}inputs": np.asarray(ids, np.int32),
        f"{side}positions": np.arange(len(ids), dtype=np.int32),
        f"{side}segment_ids": np.ones(len(ids), np.int32),
    }


def masked_one_by_one(
    before: Sequence[int],
    ids: Sequence[int],
    settings: Settings,
    limit: int | None,
    *,
    around: tuple[Sequence[int], Sequence[int]],
    mask: int,
    starts_word: Callable[[int], bool],
) -> Scored:
    """Makes a row for each token, which is masked in it (pseudo-log-likelihood).

    A text longer than the model's context is cut around the masked token.

    Args:
      around: the tokens before and after each row, such as [CLS] and [SEP].
      starts_word: whether a token begins a word.
    """
    tokens = np.asarray([*before, *ids], np.int32)
    left, right = (np.asarray(side, np.int32) for side in around)
    length = min(x for x in (settings.length, limit, len(tokens) + 2) if x is not None)
    room = max(length - len(left) - len(right), 1)

    def rows() -> Iterator[Arrays]:
        for place in range(len(before), len(tokens)):
            hidden = [place]
            if settings.hide == "rest_of_word":
                rest = range(place + 1, len(tokens))
                ends = (n for n in rest if starts_word(int(tokens[n])))
                hidden += range(place + 1, next(ends, len(tokens)))
            seen = tokens.copy()
            seen[hidden] = mask
            start = min(max(0, place - room // 2), max(0, len(tokens) - room))
            inputs = np.concatenate([left, seen[start : start + room], right])
            row = _sequence(inputs, "") | {
                "token_types": np.zeros(len(inputs), np.int32),
                "target_positions": np.asarray([len(left) + place - start], np.int32),
                "targets": tokens[place : place + 1],
                "weights": np.ones(1, np.float32),
            }
            yield row

    return Scored([*ids], rows())
