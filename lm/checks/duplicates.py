"""Near duplicates between two sets of texts: MinHash signatures, found by their bands.

A text is the set of its runs of three words. The share of equal entries of two MinHash
signatures estimates the Jaccard similarity of two such sets (Broder 1997), and texts
that are alike agree in a whole band of entries with a probability near 1 (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
"""

import dataclasses
import hashlib
import itertools
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt32, UInt64

SHINGLE = 3  # words of a run
ENTRIES = 128  # of a signature; the estimate has a standard error of at most 0.044
BAND = 4  # entries; at a similarity of 0.8 a pair is missed once in 25 million
SIMILAR = 0.8  # from this similarity on two texts count as near duplicates
HELD = 65_536  # signatures held in memory, 32 MiB; for more, the texts are read again
BATCH = 256  # texts whose signatures are computed at a time
MOST = 4_096  # runs of words whose hashes are computed at a time
# Chinese, Japanese and Korean are written without blanks: each character is a word.
WORDS = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to be compared.

    Attributes:
      where: its origin, such as file and line.
      words: what is compared.
    """

    where: str
    words: tuple[str, ...]

    @property
    def digest(self) -> int:
        """64 bits of a hash of the words in their order."""
        data = " ".join(self.words).encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclasses.dataclass(frozen=True)
class Match:
    """A text and the most similar one of the other set.

    Attributes:
      where, words: the origin of the text, and how many words it has.
      other: the origin of the other text.
      similarity: the estimated Jaccard similarity; 1 where the words are the same.
      exact: whether they are the same words in the same order.
    """

    where: str
    words: int
    other: str
    similarity: float
    exact: bool


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the words of texts without case, punctuation and forms of characters."""
    whole = unicodedata.normalize("NFKC", "\n".join(texts)).casefold()
    return tuple(WORDS.findall(whole))


def find(own: Iterable[Text], others: Callable[[], Iterator[Text]]) -> Iterator[Match]:
    """Yields those of `own` that have a near duplicate among `others`, in their order.

    Memory does not grow with either set: `own` is taken in parts of 65,536 texts, and
    for each of them the others are read once.

    Args:
      others: begins a pass over the texts of the other set at each call.
    """
    own = iter(own)
    while part := list(itertools.islice((t for t in own if t.words), HELD)):
        yield from _Part(part).compared(others())


class _Part:
    """Texts held by their signatures, against which others are compared."""

    def __init__(self, texts: Sequence[Text]):
        self.places = [(text.where, len(text.words)) for text in texts]
        self.signatures = np.concatenate(
            [signatures(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        )
        digests = np.array([text.digest for text in texts], np.uint64)
        self.by_digest = np.argsort(digests, kind="stable")
        self.digests = digests[self.by_digest]
        bands = bands_of(self.signatures)
        self.by_band = np.argsort(bands, axis=0, kind="stable")
        self.bands = np.take_along_axis(bands, self.by_band, axis=0)
        self.best = np.zeros(len(texts), np.float32)
        self.exact = np.zeros(len(texts), bool)
        self.found = [""] * len(texts)

    def compared(self, others: Iterable[Text]) -> Iterator[Match]:
        """Yields the held texts that have a near duplicate among the others."""
        others = (text for text in others if text.words)
        while batch := list(itertools.islice(others, BATCH)):
            self._same(batch)
            self._similar(batch)
        for (where, words), other, similarity, exact in zip(
            self.places, self.found, self.best.tolist(), self.exact.tolist()
        ):
            if other:
                yield Match(where, words, other, similarity, exact)

    def _same(self, batch: Sequence[Text]) -> None:
        """Notes the held texts with the same words as one of the batch."""
        asked = np.array([text.digest for text in batch], np.uint64)
        theirs, places = ranges(self.digests, asked)
        for other, own in zip(theirs.tolist(), self.by_digest[places].tolist()):
            if not self.exact[own]:
                self.exact[own], self.best[own] = True, 1
                self.found[own] = batch[other].where

    def _similar(self, batch: Sequence[Text]) -> None:
        """Notes the held texts that are similar to one of the batch."""
        asked = signatures(batch)
        pairs = []
        for band, keys in enumerate(bands_of(asked).T):
            theirs, places = ranges(self.bands[:, band], keys)
            own = self.by_band[places, band]
            open_ = ~self.exact[own]  # A better one cannot be found for the others.
            pairs.append(theirs[open_] * len(self.places) + own[open_])
        theirs, own = np.divmod(np.unique(np.concatenate(pairs)), len(self.places))
        for first in range(0, len(own), HELD):  # The signatures of 32 MiB at a time.
            some = slice(first, first + HELD)
            agree = (asked[theirs[some]] == self.signatures[own[some]]).mean(1)
            for other, n, similarity in zip(theirs[some], own[some], agree):
                if similarity >= SIMILAR and similarity > self.best[n]:
                    self.best[n], self.found[n] = similarity, batch[other].where


def ranges(
    table: UInt64[np.ndarray, " keys"], asked: UInt64[np.ndarray, " asked"]
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Looks keys up in a sorted table that may hold one of them several times.

    Returns:
      For each that is found, the number of the asked key and its place in the table.
    """
    left = np.searchsorted(table, asked, "left")
    counts = np.searchsorted(table, asked, "right") - left
    numbers = np.repeat(np.arange(len(asked)), counts)
    before = np.cumsum(counts) - counts
    return numbers, np.arange(len(numbers)) + np.repeat(left - before, counts)


def signatures(texts: Sequence[Text]) -> UInt32[np.ndarray, "texts 128"]:
    """Returns the MinHash signature of each text; each must have a word."""
    keys = [_shingles(text.words) for text in texts]
    out = np.full((len(texts), ENTRIES), 0xFFFFFFFF, np.uint32)
    owners = np.repeat(np.arange(len(texts)), [len(each) for each in keys])
    flat = np.concatenate(keys)
    for first in range(0, len(flat), MOST):
        some = slice(first, first + MOST)
        # Multiply-shift hashing (Dietzfelbinger et al. 1997), one function an entry.
        hashed = (flat[some, None] * _FACTORS + _ADDED) >> np.uint64(32)
        starts = np.flatnonzero(np.diff(owners[some], prepend=-1))
        least = np.minimum.reduceat(hashed.astype(np.uint32), starts, axis=0)
        rows = owners[some][starts]
        out[rows] = np.minimum(out[rows], least)
    return out


def bands_of(
    each: UInt32[np.ndarray, "texts 128"],
) -> UInt64[np.ndarray, "texts 32"]:
    """Returns a hash of each band of the signatures."""
    parts = each.astype(np.uint64).reshape(len(each), -1, BAND)
    out = np.zeros(parts.shape[:2], np.uint64)
    for n in range(BAND):
        out = (out ^ parts[:, :, n]) * _MIX
        out ^= out >> np.uint64(29)
    return out


def _shingles(words: tuple[str, ...]) -> UInt64[np.ndarray, " runs"]:
    """Returns a hash of each run of three words; of a shorter text, of all of it."""
    each = [zlib.crc32(word.encode(errors="surrogatepass")) for word in words]
    hashes = np.array(each, np.uint64)
    runs = max(len(hashes) - SHINGLE + 1, 1)
    out = np.zeros(runs, np.uint64)
    for n in range(min(SHINGLE, len(hashes))):
        out = (out ^ hashes[n : n + runs]) * _MIX
        out ^= out >> np.uint64(31)
    return out


_RNG = np.random.default_rng(0)
_FACTORS = _RNG.integers(0, 2**63, ENTRIES, np.uint64) * np.uint64(2) + np.uint64(1)
_ADDED = _RNG.integers(0, 2**63, ENTRIES, np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
