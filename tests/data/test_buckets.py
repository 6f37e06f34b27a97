"""Lengths of rows: few, little above what a row needs, and padding alone is cut."""

import numpy as np

from lm.data import buckets


def test_lengths_are_few_and_near():
    sizes = [buckets.round_up(n, 4096) for n in range(1, 2000)]
    assert [*dict.fromkeys(sizes)][:8] == [16, 24, 32, 48, 64, 96, 128, 192]
    for n, size in enumerate(sizes, 1):
        assert n <= size and (size <= 16 or size < 1.5 * n)
    assert buckets.round_up(70, 80) == 80


def test_only_padding_is_cut():
    row = np.array([7, 8, 9, 0, 0, 0])
    example = {"inputs": row, "segment_ids": (row > 0) * 1, "labels": row, "own": row}
    example |= {"source_inputs": row[:4], "source_segment_ids": np.ones(4, int)}
    assert buckets.used(example) == 4
    found = buckets.cut(example, 4, frozenset({"own"}))
    lengths = {name: len(array) for name, array in found.items()}
    assert lengths.pop("labels") == 6 and {*lengths.values()} == {4}
    assert found["inputs"].tolist() == [7, 8, 9, 0]
    assert buckets.used({"segment_ids": np.zeros(3)}) == 1
