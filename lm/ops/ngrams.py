"""n-grams as sorted integers: counted on the host, looked up on the device.

A table keeps each n-gram once, packed into 64-bit words whose numeric order is the
order of the n-grams. A trie has a level for each length: row i of level j is a j-gram,
`words` is its last symbol, and its continuations by one symbol are the rows
`starts[i]` to `starts[i + 1]` of level j + 1, sorted by `words` (Heafield 2011, section
3.2, read forwards here). Shapes: N n-grams, R rows that are asked for, M symbols of a
context, V vocabulary.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64, Shaped, UInt64

Level = dict[str, Any]  # "starts" (rows above + 1,) and "words" (rows,), int32
CHUNK = 4096  # Continuations that one step writes to the logits.


class Table(NamedTuple):
    """Distinct packed n-grams in ascending order, and their counts."""

    keys: UInt64[np.ndarray, "N W"]
    counts: Int64[np.ndarray, "N"]


# ── On the host: counting ───────────────────────────────────────────────────────────


def _layout(length: int, size: int) -> tuple[int, int, int]:
    """Returns bits per symbol, symbols per 64-bit word and words per n-gram."""
    bits = max((size - 1).bit_length(), 1)
    symbols = 64 // bits
    return bits, symbols, -(-length // symbols)


def pack(ngrams: Int[np.ndarray, "N n"], size: int) -> UInt64[np.ndarray, "N W"]:
    """Packs n-grams of symbols below `size` into as few 64-bit words as hold them."""
    count, length = ngrams.shape
    bits, symbols, width = _layout(length, size)
    keys = np.zeros((count, width), np.uint64)
    for j in range(length):
        word = keys[:, j // symbols]
        word <<= np.uint64(bits)
        word |= ngrams[:, j].astype(np.uint64)
    return keys


def unpack(
    keys: UInt64[np.ndarray, "N W"], length: int, size: int
) -> Int[np.ndarray, "N n"]:
    """Undoes `pack`."""
    bits, symbols, _ = _layout(length, size)
    mask = np.uint64((1 << bits) - 1)
    ngrams = np.zeros((len(keys), length), np.int32)
    for j in range(length):
        in_word = min(symbols, length - j // symbols * symbols)
        shift = np.uint64(bits * (in_word - 1 - j % symbols))
        ngrams[:, j] = (keys[:, j // symbols] >> shift) & mask
    return ngrams


def tally(
    keys: UInt64[np.ndarray, "N W"], counts: Int64[np.ndarray, "N"] | None = None
) -> Table:
    """Sorts packed n-grams and adds up the counts of equal ones (None: each counts 1).

    The sort is stable, and fast where the input is a few sorted runs.
    """
    if keys.shape[1] == 1:
        order = np.argsort(keys[:, 0], kind="stable")
    else:
        order = np.lexsort(keys.T[::-1])  # The last of its keys is the first to count.
    keys = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    firsts = np.flatnonzero(new)
    if counts is None:
        counts = np.diff(firsts, append=len(keys))
    elif len(keys):
        counts = np.add.reduceat(counts[order], firsts)
    return Table(keys[firsts], counts.astype(np.int64))


def merge(one: Table, other: Table, limit: float = math.inf) -> Table:
    """Adds the counts of two tables.

    Args:
      limit: bytes; larger tables are merged block by block into temporary files (in
        $TMPDIR), and the result is mapped from there. It is the same to the bit.
    """
    size = sum(array.nbytes for table in (one, other) for array in table)
    if size <= limit:
        return tally(*map(np.concatenate, zip(one, other)))
    width = one.keys.shape[1]
    # A block of each table, their concatenation, its order and its sorted copy.
    rows = max(int(limit) // (8 * (width + 1) * 8), 1)
    with tempfile.TemporaryFile() as keys, tempfile.TemporaryFile() as counts:
        for part in _merged_blocks((one, other), rows):
            keys.write(part.keys.tobytes())
            counts.write(part.counts.tobytes())
        keys.flush()
        counts.flush()
        total = counts.tell() // 8
        # The mappings keep the files, which have no names.
        return Table(
            np.memmap(keys, np.uint64, "r", shape=(total, width)),
            np.memmap(counts, np.int64, "r", shape=(total,)),
        )


def _merged_blocks(tables: tuple[Table, Table], rows: int) -> Iterator[Table]:
    """Yields the merged tables in ascending blocks of at most 2 `rows` n-grams."""
    starts = [0, 0]
    while any(start < len(t.keys) for start, t in zip(starts, tables)):
        blocks = [t.keys[at : at + rows] for at, t in zip(starts, tables)]
        more = [at + rows < len(t.keys) for at, t in zip(starts, tables)]
        # What is above the last key of a block may follow in the rest of its table.
        lasts = [_sortable(block)[-1] for block, goes in zip(blocks, more) if goes]
        ends = [
            at + int(np.searchsorted(_sortable(block), min(lasts), "right"))
            if lasts
            else at + len(block)
            for at, block in zip(starts, blocks)
        ]
        parts = [
            (t.keys[at:end], t.counts[at:end])
            for t, at, end in zip(tables, starts, ends)
        ]
        yield tally(*map(np.concatenate, zip(*parts)))
        starts = ends


def _sortable(keys: UInt64[np.ndarray, "N W"]) -> Shaped[np.ndarray, "N"]:
    """Returns keys of several words as texts of bytes, which have the same order."""
    return keys.astype(">u8").view(f"S{8 * keys.shape[1]}")[:, 0]


def build_trie(ngrams: Int[np.ndarray, "N n"]) -> dict[str, dict[str, np.ndarray]]:
    """Makes the levels "1" to "n" of distinct n-grams in ascending order.

    Row i of the last level is the n-gram ngrams[i].
    """
    count, length = ngrams.shape
    levels = {}
    parent = np.zeros(count, np.int64)  # the row of each n-gram's prefix one level up
    rows, new = 1, np.zeros(count, bool)
    new[:1] = True
    for j in range(length):
        new = new.copy()
        new[1:] |= ngrams[1:, j] != ngrams[:-1, j]
        firsts = np.flatnonzero(new)
        starts = np.searchsorted(parent[firsts], np.arange(rows + 1))
        levels[str(j + 1)] = {
            "starts": starts.astype(np.int32),
            "words": ngrams[firsts, j].astype(np.int32),
        }
        parent, rows = np.cumsum(new) - 1, len(firsts)
    return levels


# ── On either: the symbols before each token ────────────────────────────────────────


def contexts(
    inputs: Shaped[Any, "B T"],
    positions: Shaped[Any, "B T"],
    before: Shaped[Any, "B M"],
    begin: int,
    xp: ModuleType = jnp,
) -> Shaped[Any, "B T M"]:
    """Returns for each token the last M symbols, itself included, the oldest first.

    Args:
      positions: of each token in its text; symbols before position 0 are `begin`.
      before: the M tokens that precede the first column.
      xp: the library of the arrays, jax.numpy or numpy.
    """
    (rows, length), symbols = inputs.shape, before.shape[1]
    known = xp.concatenate([before, inputs], axis=1)
    columns = [xp.zeros((rows, length, 0), xp.int32)]
    for back in reversed(range(symbols)):
        first = symbols - back
        token = known[:, first : first + length]
        columns.append(xp.where(positions >= back, token, begin)[..., None])
    return xp.concatenate(columns, axis=-1)


# ── On the device: looking up ───────────────────────────────────────────────────────


def descend(
    level: Level, rows: Int[Array, "*any"], words: Int[Array, "*any"]
) -> Int[Array, "*any"]:
    """Finds the row of each row's continuation by a word, by bisection; -1 if absent.

    There are as many steps as the longest list of continuations needs that is searched.

    Args:
      rows: of the level above; -1 has no continuation.
    """
    symbols = level["words"]
    above = jnp.maximum(rows, 0)
    low = level["starts"][above]
    end = jnp.where(rows >= 0, level["starts"][above + 1], low)

    def left(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return jnp.any(low < high)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        right = (low < high) & (symbols.at[middle].get(mode="clip") < words)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    low, _ = jax.lax.while_loop(left, halve, (low, end))
    found = symbols.at[low].get(mode="clip") == words
    return jnp.where((low < end) & found, low, -1)


def find(trie: dict[str, Level], contexts: Int[Array, "*any M"]) -> Int[Array, "*any"]:
    """Finds the row of each context in level M of the trie; -1 if it is absent."""
    rows = jnp.zeros(contexts.shape[:-1], jnp.int32)
    for j in range(contexts.shape[-1]):
        rows = descend(trie[str(j + 1)], rows, contexts[..., j])
    return rows


def scatter(
    level: Level,
    rows: Int[Array, "R"],
    background: Float[Array, "R V"],
    value: Callable[[Array, Array], Array],
) -> Float[Array, "R V"]:
    """Writes the continuations of each row over its background.

    The continuations of all rows are numbered one after the other and written CHUNK at
    a time, so that the work is in proportion to how many there are.

    Args:
      rows: of the level above; -1 has no continuation.
      value: (indices into `rows`, rows of the level) -> the values to write.
    """
    above = jnp.maximum(rows, 0)
    starts = level["starts"][above]
    sizes = jnp.where(rows >= 0, level["starts"][above + 1] - starts, 0)
    ends = jnp.cumsum(sizes)

    def write(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, out = carry
        numbers = first + jnp.arange(CHUNK)
        row = jnp.searchsorted(ends, numbers, side="right")
        safe = jnp.minimum(row, len(rows) - 1)
        child = starts[safe] + numbers - (ends[safe] - sizes[safe])
        child = jnp.clip(child, 0, len(level["words"]) - 1)
        # Numbers beyond the last one have a row that is out of bounds.
        out = out.at[row, level["words"][child]].set(value(safe, child), mode="drop")
        return first + CHUNK, out

    def left(carry: tuple[Array, Array]) -> Array:
        return carry[0] < ends[-1]

    return jax.lax.while_loop(left, write, (jnp.int32(0), background))[1]
