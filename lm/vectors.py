"""Part: starts an embedding table from a file of word vectors, by word.

`init.source="glove:FILE"` (or word2vec:, fasttext:, the formats of lm/formats whose
files are word vectors) fills the rows of the tokens that the file has a vector for. All
other parameters, and the tokens that it has none for, start fresh.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import trees
from lm.config import names
from lm.config.classes import ROOT
from lm.errors import ConfigError, DataError


def split(source: str | None) -> tuple[str, Path] | None:
    """Splits `init.source` into format and file; None if it is no such source."""
    kind, colon, place = (source or "").partition(":")
    if colon and kind in names.words("formats.*:VECTORS", ROOT):
        return kind, Path(place)
    return None


def check(source: str, tokenizer: Any) -> None:
    """Checks what can be checked before the data are opened.

    Raises:
      ConfigError: there is no tokenizer, which such a file does not bring.
      DataError: there is no such file.
    """
    found = split(source)
    assert found is not None
    if tokenizer is None:
        expected = f"a tokenizer: {source} has words, and none"
        raise ConfigError("tokenizer", "nothing", expected, "set tokenizer.name.")
    if not found[1].is_file():
        where = f"init.source {source}"
        raise DataError(where, "no such file", "a file of word vectors")


def start(
    source: str, params: Any, model: Any, corpus: Any, note: Callable[[str], None]
) -> Any:
    """Returns the parameters with the rows of the file in the embedding table.

    A vector is given to the token that is its word as a whole, by itself or after a
    space. Of several words that the tokenizer makes equal the first one counts.
    fastText's `.bin` also has vectors for the other tokens that are words, from their
    n-grams.

    Args:
      source: "FORMAT:FILE".
      model: which "embeds".
      corpus: with the codec, and the counts of its tokens.
      note: writes the coverage to the log.

    Raises:
      DataError: the file is broken, of another width, or has no token's vector.
    """
    kind, path = split(source) or ("", Path())
    found = importlib.import_module(f"lm.formats.{kind}").read(path)
    flat = trees.flatten(params)
    table = flat[model.vectors_at]
    codec, width = corpus.codec, found.table.shape[1]
    if width != table.shape[1]:
        raise DataError(
            str(path),
            f"{width} dimensions",
            f"{table.shape[1]}, as the model's {model.vectors_at} has",
            f"set model.d_model={width}, or use another file",
        )
    rows = np.zeros(table.shape, np.float32)
    given = np.zeros(len(table), bool)
    own = corpus.objective.spell(found.words, codec)[:, 0]
    for row in np.flatnonzero(own >= 0):
        if not given[own[row]]:
            rows[own[row]] = found.vector(found.words[row], row)
            given[own[row]] = True
    if found.grams is not None:
        _compose(found, codec, corpus.objective, rows, given)
    plain = [id for id in range(codec.vocab_size) if id not in codec.special_ids]
    counts = corpus.token_counts()
    covered, share = given[plain].sum(), counts[given[: len(counts)]].sum()
    if not covered:
        example = ", ".join(map(repr, found.words[:3]))
        found_text = f"words such as {example}, none a token"
        raise DataError(str(path), found_text, "words of the tokenizer's vocabulary")
    note(
        f"vectors from {path}: {covered:,} of {len(plain):,} tokens "
        f"({covered / max(len(plain), 1):.1%}), {share / max(counts.sum(), 1):.1%} of "
        "the tokens of the training rows; the others start fresh"
    )
    fill = jax.jit(
        lambda fresh: jnp.where(given[:, None], rows, fresh),
        out_shardings=table.sharding,
    )
    return trees.unflatten(params, flat | {model.vectors_at: fill(table)})


def _compose(
    found: Any, codec: Any, objective: Any, rows: np.ndarray, given: np.ndarray
) -> None:
    """Fills the rows of tokens that are words and not in the file, from n-grams."""
    missing = [
        id
        for id in np.flatnonzero(~given[: codec.vocab_size]).tolist()
        if id not in codec.special_ids
    ]
    words = [codec.decode([id]).strip() for id in missing]
    own = objective.spell(words, codec)[:, 0]
    for id, word, whole in zip(missing, words, own):
        vector = found.vector(word) if word and whole == id else None
        if vector is not None:
            rows[id], given[id] = vector, True
