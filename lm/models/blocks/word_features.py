"""What taggers over the characters of words have in common: hashes and borders."""

from typing import Any

import numpy as np

from lm.ops import words

READS = frozenset({"lowered", "classes"})  # arrays of a batch, beside the usual ones


def hashes(parts: Any, batch: dict[str, Any], xp: Any) -> Any:
    """Returns the hashes of the features of each word of a batch; see lm/ops/words.py.

    Args:
      parts: the features.
      xp: numpy or jax.numpy.
    """
    return words.hashes(
        parts,
        words.Letters(batch["inputs"], batch["lowered"], batch["classes"]),
        batch["word_starts"],
        batch["word_ends"],
        batch["word_segments"],
        xp,
    )


def borders(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the words of a batch that count, and where their sentences begin.

    Returns:
      (B, K) bool, the words whose weight is not 0; and of these in their order,
      (words,) bool, whether a sentence begins.
    """
    weights, segments = batch["label_weights"], batch["word_segments"]
    read = np.where(weights > 0, segments, 0)
    # Sentences are numbered through the batch, so that neighbours differ.
    number = read + (segments.max() + 1) * np.arange(len(read))[:, None]
    return read > 0, np.diff(number[read > 0], prepend=-1) != 0
