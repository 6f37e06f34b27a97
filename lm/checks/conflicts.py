"""Texts that a set has several times, and those of them whose labels differ."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PARTS = 64  # files; one of them is sorted in memory at a time
CHUNK = 1 << 16  # entries held before they are written
ENTRY = np.dtype([("digest", "<u8"), ("record", "<i8"), ("label", "<i8")])


@dataclasses.dataclass(frozen=True)
class Repeated:
    """What was found.

    Attributes:
      repeated: records whose text an earlier one has too.
      conflicting: records whose text has other labels elsewhere; each of such a text's.
      pairs: (record, record) with one text and two labels, the first few.
    """

    repeated: int
    conflicting: int
    pairs: tuple[tuple[int, int], ...]


def count(entries: Iterable[tuple[int, int, int]], folder: Path) -> Repeated:
    """Counts repeated texts and conflicting labels in bounded memory.

    Memory: a 64th of 24 bytes a record, besides what is written to a temporary folder.

    Args:
      entries: (hash of the text, number of the record, its label or -1).
      folder: where the temporary folder is made.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="doctor-") as temporary:
        files = [Path(temporary) / str(part) for part in range(PARTS)]
        _spread(entries, files)
        found = [_in_part(np.fromfile(file, ENTRY)) for file in files]
    pairs = [pair for each in found for pair in each.pairs]
    return Repeated(
        sum(each.repeated for each in found),
        sum(each.conflicting for each in found),
        tuple(sorted(pairs)[:3]),
    )


def _spread(entries: Iterable[tuple[int, int, int]], files: list[Path]) -> None:
    """Writes the entries to the files; equal hashes come into the same one."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(file.open("wb")) for file in files]
        waiting: list[tuple[int, int, int]] = []

        def write() -> None:
            array = np.array(waiting, ENTRY)
            parts = array["digest"] % np.uint64(PARTS)
            for part in np.unique(parts).tolist():
                opened[part].write(array[parts == part].tobytes())
            waiting.clear()

        for entry in entries:
            waiting.append(entry)
            if len(waiting) == CHUNK:
                write()
        write()


def _in_part(array: np.ndarray) -> Repeated:
    array = np.sort(array, order=("digest", "record"))
    digests, starts, sizes = np.unique(
        array["digest"], return_index=True, return_counts=True
    )
    if not len(digests):
        return Repeated(0, 0, ())
    least = np.minimum.reduceat(array["label"], starts)
    most = np.maximum.reduceat(array["label"], starts)
    differ = np.flatnonzero(least != most)
    pairs = []
    for n in differ[:3].tolist():
        some = array[starts[n] : starts[n] + sizes[n]]
        other = some[some["label"] != some["label"][0]][0]
        pairs.append((int(some["record"][0]), int(other["record"])))
    repeated, conflicting = int((sizes - 1).sum()), int(sizes[differ].sum())
    return Repeated(repeated, conflicting, tuple(pairs))
