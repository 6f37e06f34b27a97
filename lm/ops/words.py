"""Features of words from their characters, as hashes that arrays of any device compute.

A word is the ids of its characters. A template names a property of a word of the
sentence, as in `"suffix:3"` or `"-1:lower"`:

    [OFFSET:]KIND[:N][|...]    OFFSET words to the right (default 0), several with |

    bias         the same for all words
    word, lower  all characters, as they are or in lower case
    prefix:N, suffix:N   the first or the last N characters of a word that has as many
    lprefix:N, lsuffix:N   the same in lower case
    shape        capitals X, other letters x, digits d, the rest as it is; runs as one
    digit, hyphen, capital, upper    whether the word has or begins with it, or is so

A place before the first word or after the last has a value of its own. The hashes have
32 bits; two of a million features share one by a chance of 1 in 4,300 each.
"""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

MOST = 32  # characters of a word that are read from its beginning
KINDS = ("bias", "word", "lower", "shape", "digit", "hyphen", "capital", "upper")
SIZED = ("prefix", "suffix", "lprefix", "lsuffix")
PART = re.compile(r"(?:([+-]?\d+):)?([a-z]+)(?::(\d+))?")
NONE = np.uint32(0)  # a feature that a word does not have


class Letters(NamedTuple):
    """Numbers of characters: of each of a vocabulary (V,), or in rows (B, T).

    Attributes:
      ids: the characters.
      lowered: the characters in lower case.
      classes: capital 1, other letter 2, digit 3, others above.
    """

    ids: Any
    lowered: Any
    classes: Any


class Part(NamedTuple):
    """A part of a template."""

    offset: int
    kind: str
    size: int


def parse(template: str) -> tuple[Part, ...]:
    """Reads a template.

    Raises:
      ValueError: it is none; the text says why.
    """
    parts = []
    for text in template.split("|"):
        match = PART.fullmatch(text)
        if match is None or match[2] not in (*KINDS, *SIZED):
            raise ValueError(f"{text!r}, whose kind is none of {(*KINDS, *SIZED)}")
        if (match[3] is not None) != (match[2] in SIZED):
            raise ValueError(f"{text!r}: a size belongs to {', '.join(SIZED)} alone")
        size = int(match[3] or 0)
        if match[2] in SIZED and not 1 <= size <= MOST:
            raise ValueError(f"{text!r}: a size from 1 to {MOST}")
        parts.append(Part(int(match[1] or 0), match[2], size))
    return tuple(parts)


def alphabet(characters: Sequence[str]) -> Letters:
    """Returns the numbers of the characters of a vocabulary, int32."""
    lowered = [ord(c.lower()[0]) if len(c) == 1 else 1 for c in characters]
    classes = [
        0
        if len(c) != 1
        else 1
        if c.isupper()
        else 2
        if c.isalpha()
        else 3
        if c.isdigit()
        else 4 + ord(c)
        for c in characters
    ]
    columns = np.arange(len(characters)), lowered, classes
    return Letters(*(np.array(column, np.int32) for column in columns))


def _mix(x: Any) -> Any:
    """Mixes the bits of 32-bit numbers (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _hash(values: Any, real: Any, xp: ModuleType) -> Any:
    """Returns a hash of the values (..., N) that are real, in their order."""
    found = xp.full(values.shape[:-1], np.uint32(0x9E3779B9), xp.uint32)
    for n in range(values.shape[-1]):
        new = _mix(found * np.uint32(31) + values[..., n].astype(xp.uint32))
        found = xp.where(real[..., n], new, found)
    return found


def hashes(
    templates: Sequence[tuple[Part, ...]],
    letters: Letters,
    starts: Any,
    ends: Any,
    segments: Any,
    xp: ModuleType,
) -> Any:
    """Computes the features of the words of packed rows.

    Args:
      letters: (B, T) each.
      starts, ends: (B, K) places of each word in its row.
      segments: (B, K) the sentences of a row from 1; 0 for padding.
      xp: numpy, or jax.numpy.

    Returns:
      (B, K, templates) uint32, NONE where a word does not have the feature.
    """
    found, K = [], starts.shape[1]
    values: dict[tuple[str, int], Any] = {}
    for number, parts in enumerate(templates):
        joined = xp.full(starts.shape, np.uint32(number + 1), xp.uint32)
        lacks = segments == 0
        for part in parts:
            key = part.kind, part.size
            if key not in values:
                values[key] = _property(part, letters, starts, ends, xp)
            here, has = values[key]
            if part.offset:
                at = np.arange(K) + part.offset
                inside = (at >= 0) & (at < K)
                at = np.clip(at, 0, K - 1)
                same = inside & (segments[:, at] == segments)
                edge = np.uint32(7 if part.offset < 0 else 11)
                here = xp.where(same, here[:, at], edge)
                has = xp.where(same, has[:, at], True)
            joined = _mix(joined * np.uint32(31) + here)
            lacks = lacks | ~has
        found.append(xp.where(lacks, NONE, xp.maximum(joined, np.uint32(1))))
    return xp.stack(found, axis=-1)


def _property(
    part: Part, letters: Letters, starts: Any, ends: Any, xp: ModuleType
) -> tuple[Any, Any]:
    """Returns a hash (B, K) of a property of each word, and whether the word has it."""
    kind, size = part.kind, part.size
    every = xp.ones(starts.shape, bool)
    if kind == "bias":
        return xp.ones(starts.shape, xp.uint32), every
    last = letters.ids.shape[1] - 1
    if kind in SIZED:
        first = starts if kind.endswith("prefix") else ends - size
        places = first[..., None] + np.arange(size)
        row = letters.lowered if kind[0] == "l" else letters.ids
        values = _take(row, xp.clip(places, 0, last), xp)
        return _hash(values, xp.ones(places.shape, bool), xp), ends - starts >= size
    places = starts[..., None] + np.arange(MOST)
    real = places < ends[..., None]
    places = xp.clip(places, 0, last)
    if kind in ("word", "lower"):
        row = letters.lowered if kind == "lower" else letters.ids
        return _hash(_take(row, places, xp), real, xp), every
    classes = _take(letters.classes, places, xp)
    if kind == "shape":
        new = xp.concatenate(
            [real[..., :1], real[..., 1:] & (classes[..., 1:] != classes[..., :-1])], -1
        )
        return _hash(classes, new, xp), every
    tests = {
        "digit": xp.any(real & (classes == 3), axis=-1),
        "hyphen": xp.any(real & (classes == 4 + ord("-")), axis=-1),
        "capital": classes[..., 0] == 1,
        "upper": xp.all(~real | (classes == 1), axis=-1),
    }
    return tests[kind].astype(xp.uint32), tests[kind]


def _take(row: Any, places: Any, xp: ModuleType) -> Any:
    flat = places.reshape(len(places), -1)
    return xp.take_along_axis(row, flat, axis=1).reshape(places.shape)


def find(keys: Any, features: Any, xp: ModuleType) -> Any:
    """Returns the places of features in the sorted keys, or their number if absent."""
    at = xp.searchsorted(keys, features)
    at = xp.minimum(at, len(keys) - 1)
    return xp.where((keys[at] == features) & (features != NONE), at, len(keys))


def bucket(features: Any, count: int, xp: ModuleType) -> Any:
    """Returns which of `count` buckets each feature falls into, or `count` for NONE."""
    at = (features % xp.uint32(count)).astype(xp.int32)
    return xp.where(features != NONE, at, count)
