"""Transforms of a row into an example: small frozen dataclasses on numpy.

A transform is called with the example so far and a random generator that belongs to
this (seed, epoch, row) alone, and returns the example with its own keys added. The
first one receives what `Index.row` gives: `pieces`, the token ids of the row's parts.
An example that is made for a batch of short rows has `lengths` too: how long its arrays
become, of the source first, if it has one (lm/data/buckets.py).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Example = dict[str, Any]


def filled(array: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    """Pads an array with `value` up to the length (ten times faster than np.pad)."""
    out = np.full(length, value, array.dtype)
    out[: len(array)] = array
    return out


def padded_length(example: Example, most: int, side: int = -1) -> int:
    """Returns to which length the arrays of a side are padded.

    Args:
      most: the length of the longest rows.
      side: 0 is the source, -1 the other side.
    """
    return example["lengths"][side] if "lengths" in example else most


@dataclasses.dataclass(frozen=True)
class Wrap:
    """Makes each piece a segment: prefix, tokens, suffix.

    Adds `inputs`, `positions`, `segment_ids`, `token_types`, each (length of row,).
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        prefix, suffix = self.prefix, self.suffix
        pieces = [np.asarray([*prefix, *p, *suffix]) for p in example["pieces"]]
        row = segments(pieces)
        return example | row | {"token_types": np.zeros_like(row["inputs"])}


@dataclasses.dataclass(frozen=True)
class Join:
    """Joins one or two pieces to one segment: start A end, or start A between B end.

    The tokens between belong to the first piece. A segment longer than `length` is
    shortened at the end of the longer piece, token by token (Devlin et al. 2019,
    section A.2).
    """

    length: int
    start: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        pieces = [piece.tolist() for piece in example["pieces"]]
        ends = [self.between] * (len(pieces) - 1) + [self.end]
        room = self.length - len(self.start) - sum(map(len, ends))
        while sum(map(len, pieces)) > room:
            max(pieces, key=len).pop()
        starts = [self.start, *[()] * (len(pieces) - 1)]
        parts = [[*s, *piece, *e] for s, piece, e in zip(starts, pieces, ends)]
        numbers = np.arange(len(parts), dtype=np.int32)
        types = np.repeat(numbers, [len(part) for part in parts])
        row = np.asarray([*itertools.chain(*parts)], np.int32)
        return example | segments([row]) | {"token_types": types}


@dataclasses.dataclass(frozen=True)
class WrapPair:
    """Joins pieces to [CLS] A [SEP] or [CLS] A [SEP] B [SEP]; see `Join`.

    `separators` is the number of [SEP] between two pieces.
    """

    length: int
    cls_id: int
    sep_id: int
    separators: int = 1

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        sep = (self.sep_id,)
        join = Join(self.length, (self.cls_id,), sep * self.separators, sep)
        return join(example, rng)


@dataclasses.dataclass(frozen=True)
class MaskTokens:
    """Dynamic masking (Devlin et al. 2019, section 3.1; Liu et al. 2019, section 4.1).

    `rate` of the ordinary tokens, at least one, are chosen by a function of
    lm/data/masking.py; of these `mask` become the mask token, `random` a random
    ordinary token, and the rest stay. Special tokens are never chosen.

    Adds `target_positions`, `targets` and `weights`, each (places,), where the places
    are `rate` of the `length` to which the row is padded, rounded up.
    """

    rate: float
    mask: float
    random: float
    choose: Callable[..., np.ndarray]
    length: int
    mask_id: int
    ordinary: np.ndarray = dataclasses.field(repr=False)  # (ordinary tokens,) their ids
    is_special: np.ndarray = dataclasses.field(repr=False)  # (V,) bool
    starts_word: np.ndarray = dataclasses.field(repr=False)  # (V,) bool

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        inputs = example["inputs"]
        candidates = np.flatnonzero(~self.is_special[inputs])
        places = math.ceil(padded_length(example, self.length) * self.rate)
        wanted = min(places, max(1, round(len(candidates) * self.rate)))
        starts = self.starts_word[inputs[candidates]]
        chosen = self.choose(candidates, starts, wanted, rng)
        draw = rng.random(len(chosen))
        noise = self.ordinary[rng.integers(len(self.ordinary), size=len(chosen))]
        masked = inputs.copy()
        masked[chosen] = np.where(
            draw < self.mask,
            self.mask_id,
            np.where(draw < self.mask + self.random, noise, inputs[chosen]),
        )
        return example | {
            "inputs": masked,
            "target_positions": filled(chosen.astype(np.int32), places),
            "targets": filled(inputs[chosen], places),
            "weights": filled(np.ones(len(chosen), np.float32), places),
        }


@dataclasses.dataclass(frozen=True)
class Pad:
    """Pads the arrays of a row to `length`; padding has segment 0."""

    length: int
    pad_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        length = padded_length(example, self.length)
        padded = {
            name: filled(example[name], length)
            for name in ("positions", "segment_ids", "token_types")
        }
        inputs = filled(example["inputs"], length, self.pad_id)
        return example | padded | {"inputs": inputs}


@dataclasses.dataclass(frozen=True)
class SourceTarget:
    """Makes the pieces source, target, source, target, ... the two sides of a model.

    A source ends with `eos_id`. The decoder's inputs are `start_id` and the target, its
    targets the target and `eos_id` (Sutskever et al. 2014). Pair k is segment k on both
    sides.

    Adds `source_inputs`, `source_positions`, `source_segment_ids`, each (length of the
    sources,), and `inputs`, `positions`, `segment_ids`, `targets`, `weights`, each
    (length of the targets,).
    """

    start_id: int
    eos_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        sources, targets = example["pieces"][0::2], example["pieces"][1::2]
        start, eos = np.asarray([[self.start_id], [self.eos_id]], np.int32)
        source = segments([np.concatenate([piece, eos]) for piece in sources])
        return (
            example
            | {f"source_{name}": array for name, array in source.items()}
            | segments([np.concatenate([start, piece]) for piece in targets])
            | {
                "targets": np.concatenate([x for t in targets for x in (t, eos)]),
                "weights": np.ones(sum(len(t) + 1 for t in targets), np.float32),
            }
        )


def segments(pieces: list[np.ndarray]) -> Example:
    """Returns `inputs`, `positions`, `segment_ids` of pieces, each a segment."""
    lengths = [len(piece) for piece in pieces]
    places = [np.arange(length, dtype=np.int32) for length in lengths]
    numbers = np.arange(1, len(pieces) + 1, dtype=np.int32)
    return {
        "inputs": np.concatenate(pieces).astype(np.int32),
        "positions": np.concatenate(places),
        "segment_ids": np.repeat(numbers, lengths),
    }


@dataclasses.dataclass(frozen=True)
class PadSides:
    """Pads the arrays of encoder and decoder to the length of each.

    Padding has segment 0 and weight 0, and is `pad_id` in inputs and targets.
    """

    source_length: int
    length: int
    pad_id: int

    SOURCE = ("source_inputs", "source_positions", "source_segment_ids")
    OWN = ("inputs", "positions", "segment_ids", "targets", "weights", "prefix")
    TOKENS = ("source_inputs", "inputs", "targets")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        sides = (
            (self.SOURCE, padded_length(example, self.source_length, 0)),
            (self.OWN, padded_length(example, self.length)),
        )
        return example | {
            name: filled(example[name], length, self.pad_id * (name in self.TOKENS))
            for names, length in sides
            for name in names
            if name in example
        }


@dataclasses.dataclass(frozen=True)
class Keep:
    """Keeps only the named arrays."""

    names: tuple[str, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {name: example[name] for name in self.names}
