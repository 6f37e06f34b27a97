"""What taggers over the characters of words have in common: tables, hashes, borders."""

from typing import Any

import numpy as np

from lm.ops import words


def tables(corpus: Any, vocab_size: int | None) -> dict[str, np.ndarray]:
    """Makes the tables of the characters, and `tags` (tags,), which counts them.

    Args:
      corpus: of the run, whose tokens are characters.
      vocab_size: of the model, at least the tokenizer's.
    """
    assert vocab_size is not None  # filled in by the run
    codec = corpus.codec
    names = [codec.token(i) for i in range(codec.vocab_size)]
    names += [""] * (vocab_size - len(names))
    tags = np.zeros(len(corpus.objective.labels), bool)
    return {**words.alphabet(names)._asdict(), "tags": tags}


def hashes(parts: Any, params: Any, batch: dict[str, Any], xp: Any) -> Any:
    """Returns the hashes of the features of each word of a batch; see lm/ops/words.py.

    Args:
      parts: the features.
      params: of the model, with the tables.
      xp: numpy or jax.numpy.
    """
    return words.hashes(
        parts,
        words.Alphabet(params["lower"], params["shape"]),
        batch["inputs"],
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
