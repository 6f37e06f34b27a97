"""What word vectors make of counts: sub-sampling, noise and Huffman codes.

Mikolov et al. 2013 (arXiv:1310.4546) and the programs that were published with it. All
functions are of numpy and run on the host.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RANGE = 2**31 - 1  # The noise is drawn as a whole number below this.


class Codes(NamedTuple):
    """A Huffman code of a vocabulary; P is the longest code.

    Attributes:
      nodes: (V, P) the inner nodes from the root to each word, as rows of a table of
        V - 1 rows.
      turns: (V, P) 1 where the path turns right at the node, 0 where it turns left, -1
        after the end of the path.
    """

    nodes: Int[np.ndarray, "V P"]
    turns: Int[np.ndarray, "V P"]


def keep_probability(
    counts: Int[np.ndarray, "V"], threshold: float
) -> Float[np.ndarray, "V"]:
    """Computes with which probability a token is kept in sub-sampling.

    It is min(1, (sqrt(f / t) + 1) t / f) for a word of relative frequency f, as in the
    published program; section 2.3 of the paper has sqrt(t / f).

    Args:
      threshold: t; 0 keeps every token.
    """
    if not threshold:
        return np.ones(len(counts))
    share = np.maximum(counts, 1) / max(counts.sum(), 1) / threshold
    return np.minimum(1.0, (np.sqrt(share) + 1) / share)


def noise_table(counts: Int[np.ndarray, "V"], power: float) -> Int[np.ndarray, "V"]:
    """Computes the cumulative distribution of noise in proportion to count ** power.

    `np.searchsorted(table, x, "right")` of a uniform whole x in [0, RANGE) is a draw. A
    word that does not occur is never drawn.
    """
    mass = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** power, 0)
    return np.round(np.cumsum(mass) / mass.sum() * RANGE).astype(np.int64)


def huffman(counts: Int[np.ndarray, "V"]) -> Codes:
    """Builds the Huffman code of the words, in which frequent words have short codes.

    Words with equal counts are taken in the order of their ids. Words that do not
    occur have long codes and are not left out, so that the probabilities of all V words
    sum to 1.
    """
    size = len(counts)
    heap = [(int(count), word) for word, count in enumerate(counts)]
    heapq.heapify(heap)
    parent = np.zeros(2 * size, np.int64)
    right = np.zeros(2 * size, np.int8)
    for node in range(size, 2 * size - 1):
        (low, one), (high, other) = heapq.heappop(heap), heapq.heappop(heap)
        parent[one] = parent[other] = node
        right[other] = 1
        heapq.heappush(heap, (low + high, node))
    root = max(2 * size - 2, 0)
    paths: list[list[int]] = []
    for word in range(size):
        path = [word]
        while path[-1] != root:
            path.append(int(parent[path[-1]]))
        paths.append(path[::-1])
    longest = max(len(path) for path in paths) - 1
    nodes = np.zeros((size, longest), np.int32)
    turns = np.full((size, longest), -1, np.int8)
    for word, path in enumerate(paths):
        nodes[word, : len(path) - 1] = np.asarray(path[:-1]) - size
        turns[word, : len(path) - 1] = right[path[1:]]
    return Codes(nodes, turns)
