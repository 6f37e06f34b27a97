"""Corruption of texts: spans or the end are left out for the model to predict.

Raffel et al. 2020 (T5), section 3.1.4; Tay et al. 2022 (UL2), section 3. A form
decides how much is left out and draws where; `Corrupt` makes source and target.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from lm.data.transforms import Example, segments


@runtime_checkable
class Form(Protocol):
    """A way to leave out tokens of a piece of n tokens, n being 2 or more."""

    @property
    def mode(self) -> tuple[int, ...]:
        """Tokens put before the source."""

    def lengths(self, n: int) -> tuple[int, int]:
        """Returns the most positions of source and target, end tokens included."""

    def sentinels(self, n: int) -> int:
        """Returns how many sentinels a piece of n tokens needs."""

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws which tokens are left out, (n,) bool: never all, nor the first."""


@dataclasses.dataclass(frozen=True)
class Spans:
    """Leaves out spans of random length and position, as the code of T5 draws them.

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
        """Returns how many tokens of n are left out, and in how many spans."""
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
    """Leaves out the end of a piece, of a length uniform from 1 to 2 n rate - 1.

    Args:
      rate: mean share of the tokens that is left out; 0.5 is T5's prefix LM.
      sentinel: whether a sentinel replaces the part that is left out, as in UL2.
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
    """Draws (parts,) lengths of at least 1 with the sum `total`, all equally likely."""
    ends = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=total)


def raw_length(forms: Iterable[Form], source: int, target: int | None) -> int:
    """Returns the most tokens of a piece that fits both sides in every form.

    It is 0 where not even a piece of two tokens fits. With `target` None only the
    source is bounded.
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
    """Splits a piece into source and target.

    Sentinel k replaces span k in the source, and precedes it in the target.

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
    """Makes two pieces of each, source and target, by one of the forms.

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
    """Makes each piece a segment of a decoder that sees its first part as a whole.

    The inputs are `start_id` and the piece without its last token. The start and the
    first k tokens are the prefix, k uniform from 1 to n - 1; later tokens are targets
    of weight 1. Adds `inputs`, `positions`, `segment_ids`, `targets`,
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
