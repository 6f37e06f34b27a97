"""The index of a corpus: ids, texts, terms and vectors, in memory or in a folder.

The folder holds ids.json, texts.json, terms.json, postings.npz, vectors.npy where there
are vectors, and MANIFEST.json, which has the settings, the run and the step that made
the vectors, and the SHA-256 of each file. It appears as a whole or not at all, and all
files are verified when it is opened.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lm.errors import CheckpointError
from lm.host import files, storage
from lm.retrieval import bm25, ranks
from lm.retrieval.ranks import NOTHING, Found
from lm.retrieval.terms import Terms

BOUNDS = {"k1": "[0, 100]", "b": "[0, 1]"}
FORMAT = 1
LIMIT = 1 << 34  # bytes of a file of ids, texts or terms
METHODS = ("dense", "bm25", "fusion")
POSTINGS = ("starts", "documents", "counts", "lengths")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How words are indexed and compared.

    Attributes:
      stem: whether English words are reduced to their stems (Porter 1980).
      stop_words: whether the 33 most frequent English function words are left out.
      k1: of BM25, how slowly a term's weight grows with its number in a document.
      b: of BM25, how much a document's length counts.
    """

    stem: bool = True
    stop_words: bool = True
    k1: float = 1.2
    b: float = 0.75


@dataclasses.dataclass(frozen=True)
class Index:
    """A corpus that can be searched.

    Attributes:
      ids: of the documents.
      words: which document has which terms.
      settings: how they were made and compared.
      vectors: (N, D) of the documents; None where there are none.
      facts: what the manifest says beside that.
    """

    ids: Sequence[str]
    words: bm25.Postings
    settings: Settings
    vectors: Float[np.ndarray, "N D"] | None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def search(
        self,
        method: str,
        texts: Sequence[str],
        vectors: Float[np.ndarray, "Q D"] | None,
        count: int,
        depth: int = 100,
    ) -> list[Found]:
        """Finds documents for queries, exactly.

        A query without a letter or digit finds nothing, by any method.

        Args:
          method: "dense" ranks by inner products with the vectors, "bm25" by words, and
            "fusion" fuses both lists by reciprocal ranks.
          vectors: of the queries, where the method is not "bm25".
          count: the most documents of a query.
          depth: of the lists that are fused, if it is more than `count`.
        """
        if method == "fusion":
            most = max(count, depth)
            both = [self.search(m, texts, vectors, most) for m in ("dense", "bm25")]
            return [ranks.fuse(pair, self._places, count) for pair in zip(*both)]
        if method == "bm25":
            asked = [self._terms(text) for text in texts]
            return self._bm25.search(asked, self._places, count)
        assert vectors is not None and self.vectors is not None
        found = ranks.search_vectors(vectors, self.vectors, self._places, count)
        return [
            one if any(map(str.isalnum, text)) else NOTHING
            for text, one in zip(texts, found)
        ]

    def run(
        self, queries: Sequence[str], found: Sequence[Found], count: int | None = None
    ) -> dict[str, dict[str, float]]:
        """Returns what was found by ids: query -> {document: score}, the best first."""
        return {
            query: {
                self.ids[row]: float(str(score))
                for row, score in zip(one.rows[:count].tolist(), one.scores)
            }
            for query, one in zip(queries, found)
        }

    def scores(
        self,
        method: str,
        text: str,
        vector: Float[np.ndarray, "D"] | None,
        rows: Sequence[int],
    ) -> Float[np.ndarray, "n"]:
        """Computes the scores of some documents for a query, by "dense" or "bm25"."""
        if method == "bm25":
            return self._bm25.scores([self._terms(text)])[0, list(rows)]
        assert vector is not None and self.vectors is not None
        return np.asarray(self.vectors[list(rows)]) @ vector

    @functools.cached_property
    def _places(self) -> ranks.Places:
        return ranks.places_of(self.ids)

    @functools.cached_property
    def _terms(self) -> Callable[[str], list[str]]:
        return Terms(self.settings.stem, self.settings.stop_words).reader()

    @functools.cached_property
    def _bm25(self) -> bm25.BM25:
        return bm25.BM25(self.words, self.settings.k1, self.settings.b)


def make(
    ids: Sequence[str],
    texts: Iterable[str],
    settings: Settings,
    vectors: Float[np.ndarray, "N D"] | None = None,
) -> Index:
    """Makes the index of a corpus in memory."""
    terms = Terms(settings.stem, settings.stop_words).reader()
    return Index(ids, bm25.count(map(terms, texts)), settings, vectors)


def facts_of(
    ids: Sequence[str],
    texts: Sequence[str],
    settings: Settings,
    model: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns what the manifest of an index says, and what determines it.

    Args:
      model: the run and the step that make the vectors, and how; None: there are none.
    """
    corpus = hashlib.sha256()
    for pair in zip(ids, texts):
        corpus.update(json.dumps(pair).encode() + b"\n")
    return {
        "kind": "index of a corpus",
        "format": FORMAT,
        "corpus": corpus.hexdigest(),
        "documents": len(ids),
        "settings": dataclasses.asdict(settings),
        "model": None if model is None else dict(model),
    }


def write(
    index: Index, texts: Sequence[str], folder: Path, facts: Mapping[str, Any]
) -> None:
    """Writes an index to a new folder, as a whole or not at all.

    Raises:
      StorageError: the folder exists, or the disk is full or cannot be written.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(f"{folder.name}.partial")
    with storage.refusing(partial):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        arrays = {name: getattr(index.words, name) for name in POSTINGS}
        np.savez(partial / "postings.npz", **arrays)
        if index.vectors is not None:
            np.save(partial / "vectors.npy", index.vectors)
    for name, value in (
        ("ids.json", [*index.ids]),
        ("texts.json", [*texts]),
        ("terms.json", [*index.words.terms]),
    ):
        storage.write_json(partial / name, value)
    storage.commit(partial, folder, **facts)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Reads what the manifest of an index says; None where there is no folder.

    Raises:
      CheckpointError: the folder is no index, or its manifest is damaged.
    """
    if not Path(folder).exists():
        return None
    facts = storage.read_manifest(folder)
    if facts.get("kind") != "index of a corpus" or facts.get("format") != FORMAT:
        found = f"{facts.get('kind')!r} of format {facts.get('format')!r}"
        expected = f"an index of a corpus, format {FORMAT}"
        raise CheckpointError(str(folder), found, expected, "build it again")
    return {name: value for name, value in facts.items() if name != "files"}


def read(folder: Path) -> Index:
    """Opens an index, every file verified.

    Raises:
      CheckpointError: there is none, or a file is missing, cut or changed; names it.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    if facts is None:
        raise CheckpointError(str(folder), "no folder", "an index of a corpus")
    storage.verify(folder)
    ids, terms = (
        files.read_json(folder / name, [""], limit=LIMIT, error=CheckpointError)
        for name in ("ids.json", "terms.json")
    )
    settings, vectors = Settings(**facts["settings"]), None
    try:
        with np.load(folder / "postings.npz", allow_pickle=False) as arrays:
            words = bm25.Postings(tuple(terms), *(arrays[name] for name in POSTINGS))
        if facts["model"] is not None:
            file = folder / "vectors.npy"
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        held = {len(ids), len(words.lengths)}
        held |= set() if vectors is None else {len(vectors)}
        whole = len(words.starts) == len(terms) + 1 and held == {facts["documents"]}
    except (ValueError, KeyError, OSError):
        whole = False
    if not whole:
        expected = "those of one index"
        raise CheckpointError(str(folder), "arrays that do not fit", expected)
    return Index(ids, words, settings, vectors, facts)


def read_texts(folder: Path) -> list[str]:
    """Reads the texts of an index that `read` has verified."""
    place = Path(folder) / "texts.json"
    return files.read_json(place, [""], limit=LIMIT, error=CheckpointError)
