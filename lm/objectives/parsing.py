"""Parsing: the trees of sentences by a grammar, and their probabilities.

A row is one sentence. Records come from the source `trees`: words with spaces between
them, and a binary tree as tokens. The tokenizer is one of whole words.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lm.data import trees
from lm.data.index import Encoded, Index, Layout, Writer
from lm.data.layouts import text_of
from lm.data.scoring import Scored, Settings, Text
from lm.data.sources.base import Record
from lm.data.transforms import Example, filled, segments
from lm.errors import DataError, Rule
from lm.objectives import base
from lm.objectives.base import Asked, Batch, Rows, Terms
from lm.ops import cky, losses
from lm.tokenizers.base import Codec

ENDINGS = ("s", "ed", "ing", "ion", "er", "est", "ly", "ity", "y", "al")
SHAPES = 4


def word_class(word: str) -> int:
    """Returns the class of a word that a grammar does not know, below 44.

    It is told by digits, hyphens and capitals, and by the ending of the word (Petrov et
    al. 2006, section 3.2, in spirit).
    """
    shape = 0
    if re.search(r"\d", word):
        shape = 1
    elif "-" in word[1:]:
        shape = 2
    elif word[:1].isupper():
        shape = 3
    low = word.lower()
    longest = sorted(range(len(ENDINGS)), key=lambda i: -len(ENDINGS[i]))
    end = next((i + 1 for i in longest if low.endswith(ENDINGS[i])), 0)
    return shape * (len(ENDINGS) + 1) + end * (len(word) > len(ENDINGS[end - 1]) + 1)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """A row of each record: its words and its tree, and the classes of the words.

    Args:
      words, grammar: the columns of the words and of the binary tree.
      length: the words that a row holds.
      too_long: what to do with a longer sentence.
    """

    words: str
    grammar: str | None
    length: int
    too_long: Literal["error", "skip"]

    def texts(self, record: Record) -> list[str]:
        names = (self.words, self.grammar)
        return [text_of(record, name) for name in names if name is not None]

    def write(self, records: Encoded, out: Writer) -> None:
        for record, pieces in records:
            text = text_of(record, self.words)
            words = text.split()
            check_words(words, pieces[0], record.where)
            if len(words) > self.length:
                if self.too_long == "error":
                    found, expected = f"{len(words)} words", f"at most {self.length}"
                    fix = "raise seq_len, or set objective.too_long=skip"
                    raise DataError(record.where, found, expected, fix)
                out.counts["too_long_skip"] += 1
                continue
            classes = [word_class(word) for word in words]
            size = float(len(text.encode()))
            out.row(pieces, record=out.record, classes=classes, bytes=size)


def check_words(words: Sequence[str], pieces: Sequence[int], where: str) -> None:
    """Raises a DataError for a sentence without words, or without a token for each."""
    if len(words) != len(pieces) or not words:
        found = f"{len(words)} words and {len(pieces)} tokens"
        fix = 'set tokenizer=dict(name="word", kind="word")'
        raise DataError(where, found, "a token for each word", fix if words else None)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Makes the arrays of an example; `tree` has room for the largest of a row."""

    length: int
    pad_id: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        words, *given = example["pieces"]
        found = segments([words])
        out = {n: filled(x, self.length) for n, x in found.items()}
        weights = np.ones(len(words), np.float32)
        if given:
            out["tree"] = filled(given[0], 5 * self.length, self.pad_id)
        return out | {
            "classes": filled(example["classes"].astype(np.int32), self.length),
            "weights": filled(weights, self.length),
        }


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `parsing`.

    Attributes:
      words, grammar, tree: the columns of the words, of the binary tree as tokens
        (None: there is none), and of the tree in brackets that parses are scored by.
      too_long: what to do with a sentence of more than seq_len words: refuse or skip
        it. The work of a sentence grows with the cube of its length.
    """

    words: str = "text"
    grammar: str | None = "grammar"
    tree: str = "tree"
    too_long: Literal["error", "skip"] = "skip"

    can: ClassVar[frozenset[str]] = frozenset({"trees", "show", "score", "answers"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"parse"})

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        expected = "a column: rules are counted from trees"
        yield Rule(self.grammar is not None, "objective.grammar", "None", expected)

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"classes"})

    @property
    def along(self) -> frozenset[str]:
        return frozenset({"classes", "weights"})

    @property
    def packs(self) -> bool:
        return False

    def columns(self) -> tuple[str, ...]:
        return (self.words,) if self.grammar is None else (self.words, self.grammar)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        return Sentences(self.words, self.grammar, seq_len, self.too_long)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        return (Arrays(seq_len, codec.pad_id or 0),)

    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms:
        """Returns the nats of the sentences, and the number of their words."""
        weights = batch["weights"]
        nats, _ = losses.weighted(-model.log_prob(batch), weights.max(axis=1))
        return {"sentence": (nats, weights.sum())}

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"sentence": batch["weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("sentence_loss",)

    def predict(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Returns the nodes of the best trees, their scores, and log-probabilities.

        `nodes` (B, N, 3) and `scores` (B,) are those of lm.ops.cky.Parse with tokens as
        symbols; `inside` (B,) sums over all trees, and `log_prob` is mixed with the
        backup of the model.
        """
        found: cky.Parse = model.parse(batch)
        inside = model.log_inside(batch)
        return {
            "nodes": found.nodes,
            "scores": found.scores,
            "inside": inside,
            "log_prob": model.log_prob(batch, inside),
        }

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        return (("text",),)

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes the row of a sentence, whose end is always part of its probability."""
        words, ids = text.text.split(), codec.encode(text.text)
        check_words(words, ids, text.where)
        row = {
            "inputs": np.asarray(ids, np.int32),
            "segment_ids": np.ones(len(ids), np.int32),
            "classes": np.asarray([word_class(word) for word in words], np.int32),
            "weights": np.ones(len(ids), np.float32),
        }
        return Scored(ids, [row], whole=True)

    def score(
        self, model: Any, batch: Batch
    ) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
        """Returns log p of each sentence at its last word, and 0 at the others."""
        real = batch["segment_ids"] != 0
        last = jnp.arange(real.shape[1]) == jnp.sum(real, axis=1, keepdims=True) - 1
        found = jnp.where(last, model.log_prob(batch)[:, None], 0.0)
        return found, jnp.zeros_like(last)

    def parse_of(
        self, predictions: Mapping[str, Any], words: Sequence[str], codec: Codec
    ) -> trees.Tree | None:
        """Returns the best tree of a sentence, not binary; None if it has none.

        Args:
          predictions: those of `predict` for its row.
        """
        found = self._binary(predictions, words, codec)
        return None if found is None else trees.whole(found)

    def _binary(
        self, predictions: Mapping[str, Any], words: Sequence[str], codec: Codec
    ) -> trees.Tree | None:
        if not np.isfinite(predictions["scores"]):
            return None
        nodes = iter(predictions["nodes"].tolist())
        return trees.built(nodes, words, lambda symbol: codec.token(symbol)[1:])

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the words and the best binary tree of a sentence."""
        count = int((batch["segment_ids"][row] != 0).sum())
        words = [codec.token(int(i)) for i in batch["inputs"][row, :count]]
        own = {name: array[row] for name, array in predictions.items()}
        tree = self._binary(own, words, codec)
        return f"{' '.join(words)}\n{tree or '(no tree)'}"

    def unlabelled(self) -> "Objective":
        return dataclasses.replace(self, grammar=None)

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        return {"trees": ("tree", "tree_log_prob", "log_prob")}

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the best tree of a sentence in brackets, and log-probabilities.

        That of the tree is joint with the words, that of the sentence sums over all
        trees. None stands where there is none, and for a sentence that is too long.
        """
        if not rows:
            return dict.fromkeys((*self.says["trees"], "truncated"))
        (asked,) = rows
        found = asked.predictions
        tree = self.parse_of(found, text_of(record, self.words).split(), codec)
        logs = {
            name: round(float(found[key]), 6) if np.isfinite(found[key]) else None
            for name, key in (("tree_log_prob", "scores"), ("log_prob", "log_prob"))
        }
        return {"tree": None if tree is None else str(tree), **logs, "truncated": 0}
