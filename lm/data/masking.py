"""Which tokens masked language modelling predicts: a function for each way to choose.

`objective.choose` names one. Each takes

    candidates (N,) int    positions of the tokens that may be chosen, in order
    starts (N,) bool       whether the candidate begins a word
    count int              how many to choose, from 1 to N
    rng                    where all its draws come from

and returns the chosen positions, sorted: at most `count` and, where N is not 0, at
least one.
"""

import numpy as np
from jaxtyping import Bool, Int

# Of SpanBERT: lengths in words are geometric, and cut off (Joshi et al. 2020, 3.1).
SPAN_END, LONGEST_SPAN = 0.2, 10

Positions = Int[np.ndarray, "_"]
Starts = Bool[np.ndarray, "_"]


def tokens(
    candidates: Positions, starts: Starts, count: int, rng: np.random.Generator
) -> Positions:
    """Chooses tokens one by one (Devlin et al. 2019, section 3.1)."""
    return np.sort(rng.permutation(candidates)[:count])


def words(
    candidates: Positions, starts: Starts, count: int, rng: np.random.Generator
) -> Positions:
    """Chooses whole words in random order, skipping those that no longer fit."""
    pieces = _split(candidates, starts)
    chosen: list[int] = []
    for number in rng.permutation(len(pieces)):
        if len(chosen) + len(pieces[number]) <= count:
            chosen.extend(pieces[number])
    if not chosen and pieces:  # Every word is longer than what is wanted.
        chosen.extend(pieces[int(rng.integers(len(pieces)))][:count])
    return np.sort(np.asarray(chosen, dtype=candidates.dtype))


def spans(
    candidates: Positions, starts: Starts, count: int, rng: np.random.Generator
) -> Positions:
    """Chooses runs of whole words (SpanBERT: Joshi et al. 2020, section 3.1).

    The length of a run in words is geometric with p = 0.2, at most 10; the word at
    which it begins is uniform. The last run is cut so that `count` is not exceeded.
    """
    pieces = _split(candidates, starts)
    chosen: set[int] = set()
    while len(chosen) < min(count, len(candidates)):
        length = min(int(rng.geometric(SPAN_END)), LONGEST_SPAN)
        first = int(rng.integers(len(pieces)))
        for token in np.concatenate(pieces[first : first + length]).tolist():
            if len(chosen) < count:
                chosen.add(token)
    return np.asarray(sorted(chosen), dtype=candidates.dtype)


def _split(candidates: Positions, starts: Starts) -> list[Positions]:
    """Splits the candidates into words; a token between two of them ends a word too."""
    if not len(candidates):
        return []
    first = starts.copy()
    first[1:] |= np.diff(candidates) > 1
    first[0] = True
    return np.split(candidates, np.flatnonzero(first)[1:])
