"""Texts of which a part is left out for the model to say: spans, or the end.

Raffel et al. 2020 (T5), section 3.1.4; Tay et al. 2022 (UL2), section 3. A form says
how much is left out and draws where; `Corrupt` makes source and target of a piece.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from lm.data.transforms import Example, segments


@runtime_checkable
class Form(Protocol):
    """What may be made of a piece of n tokens, n being 2 or more."""

    @property
    def mode(self) -> tuple[int, ...]:
        """Tokens put before the source."""

    def lengths(self, n: int) -> tuple[int, int]:
        """Places of source and target at most, an end token on each side included."""

    def sentinels(self, n: int) -> int:
        """How many sentinels it takes."""

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n,) bool, what is left out: never all of it, nor the first token."""


@dataclasses.dataclass(frozen=True)
class Spans:
    """Spans of random length and place, as the code of T5 draws them.

    The numbers of tokens and of spans are fixed by the length of the piece: round(n
    rate), and of these round(· / span), each at least 1. Kept and left-out tokens are
    each cut into that many parts, all ways of cutting being equally probable, and the
    parts alternate, a kept one first: so no two spans touch, and a piece ends with one.

    Args:
      rate: share of the tokens that is left out.
      span: mean length of a span.
      mode: token ids put before the source.
    """

    rate: float
    span: float
    mode: tuple[int, ...] = ()

    def sizes(self, n: int) -> tuple[int, int]:
        """The tokens left out of a piece of n, and in how many spans."""
        noise = min(max(round(n * self.rate), 1), n - 1)
        return noise, min(max(round(noise / self.span), 1), n - noise)

    def lengths(self, n: int) -> tuple[int, int]:
        noise, spans = self.sizes(n)
        return len(self.mode) + n - noise + spans + 1, noise + spans + 1

    def sentinels(self, n: int) -> int:
        return self.sizes(n)[1]

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        noise, spans = self.sizes(n)
        parts = np.empty(2 * spans, np.int64)
        parts[0::2] = cut(n - noise, spans, rng)
        parts[1::2] = cut(noise, spans, rng)
        return np.repeat(np.arange(2 * spans) % 2 == 1, parts)


@dataclasses.dataclass(frozen=True)
class Suffix:
    """The end of the piece, its length uniform from 1 to 2 n rate - 1.

    Args:
      rate: mean share of the tokens that is left out; 0.5 is T5's prefix LM.
      sentinel: whether a sentinel stands for what is left out, as in UL2.
      mode: token ids put before the source.
    """

    rate: float
    sentinel: bool
    mode: tuple[int, ...] = ()

    def longest(self, n: int) -> int:
        return min(max(round(2 * n * self.rate) - 1, 1), n - 1)

    def lengths(self, n: int) -> tuple[int, int]:
        extra = self.sentinel + 1
        return len(self.mode) + n - 1 + extra, self.longest(n) + extra

    def sentinels(self, n: int) -> int:
        return int(self.sentinel)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.arange(n) >= n - rng.integers(1, self.longest(n) + 1)


def cut(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """(parts,) lengths of at least 1 that add up to total, uniform over all such."""
    ends = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=total)


def raw_length(forms: Iterable[Form], source: int, target: int | None) -> int:
    """The most tokens of a piece of which every form fits the lengths of both sides.

    0 where not even a piece of two tokens does. `target` None bounds the source alone.
    """

    def fits(n: int) -> bool:
        lengths = [form.lengths(n) for form in forms]
        return all(s <= source and t <= (target or t) for s, t in lengths)

    forms = tuple(forms)
    n = 1
    while fits(n + 1):
        n += 1
    return n if n > 1 else 0


def split(
    piece: np.ndarray, left_out: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of a piece: in the source sentinel k stands for span k, in the
    target before it.

    The target has no sentinel after its last span, as in the code of T5 and unlike the
    figures of its paper: the end token closes it. Without sentinels: the tokens kept,
    and the others.
    """
    starts = left_out & ~np.concatenate([[False], left_out[:-1]])
    if not len(sentinels):
        return piece[~left_out], piece[left_out]
    used = sentinels[: starts.sum()]
    source = piece.copy()
    source[starts] = used
    target = np.insert(piece[left_out], np.flatnonzero(starts[left_out]), used)
    return source[~left_out | starts], target


@dataclasses.dataclass(frozen=True)
class Corrupt:
    """Each piece becomes two, source and target, by one of the forms.

    Args:
      forms: the forms.
      weights: how often each is drawn, relative to the others.
      sentinel_ids: in the order of their use.
    """

    forms: tuple[Form, ...]
    weights: tuple[float, ...]
    sentinel_ids: tuple[int, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        shares = np.cumsum(self.weights) / np.sum(self.weights)
        pieces = []
        for piece in example["pieces"]:
            form = self.forms[int(np.searchsorted(shares, rng.random(), "right"))]
            used = self.sentinel_ids[: form.sentinels(len(piece))]
            left_out = form.draw(len(piece), rng)
            source, target = split(piece, left_out, np.asarray(used, piece.dtype))
            pieces += [np.concatenate([np.asarray(form.mode, piece.dtype), source])]
            pieces += [target]
        return example | {"pieces": pieces}


@dataclasses.dataclass(frozen=True)
class PrefixAndRest:
    """Each piece as a segment of a decoder that sees its first part as a whole.

    The decoder reads `start_id` and the piece but for its last token. The first k
    tokens and the start are the prefix, k uniform from 1 to n - 1; the weights are 1
    where a later token is said. Adds `inputs`, `positions`, `segment_ids`, `targets`,
    `weights` and `prefix`.
    """

    start_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        pieces = example["pieces"]
        start = np.asarray([self.start_id], np.int32)
        cuts = [int(rng.integers(1, len(piece))) for piece in pieces]
        places = [np.arange(len(piece)) for piece in pieces]
        read = [np.concatenate([start, piece[:-1]]) for piece in pieces]
        return (
            example
            | segments(read)
            | {
                "targets": np.concatenate(pieces),
                "weights": np.concatenate(
                    [(p >= k).astype(np.float32) for p, k in zip(places, cuts)]
                ),
                "prefix": np.concatenate([p <= k for p, k in zip(places, cuts)]),
            }
        )
