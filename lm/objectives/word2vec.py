"""word2vec and fastText: words predict their neighbours, or are predicted by them.

Skip-gram and CBOW (Mikolov et al. 2013, arXiv:1301.3781), with negative sampling or
hierarchical softmax (arXiv:1310.4546), over words or over words and their character
n-grams (fastText, Bojanowski et al. 2017). As in the published programs, in skip-gram
each word of a window predicts the centre, and the mean of several rows passes its
whole gradient to each of them.

A pair costs no product of its own. A span of L centres has C contexts, of which the
windows are a band of an (L, C) matrix of scores; and it shares N words of noise, whose
(C, N) scores are weighted so that each pair counts `negatives` of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.data import transforms
from lm.data.index import Index
from lm.data.neighbours import Neighbours
from lm.errors import Rule
from lm.models.base import Head
from lm.models.blocks.tables import Rows
from lm.objectives.base import Batch, Terms
from lm.objectives.by_rows import (
    RowObjective,
    Spans,
    Touched,
    log_sigmoid_loss,
    mean_with_whole_gradient,
)
from lm.ops import frequencies
from lm.ops.subwords import buckets_of
from lm.tokenizers.base import Codec

BOUNDS = {
    "window": "[1, 1000]",
    "negatives": "[0, 1000]",
    "power": "[0, 10]",
    "subsample": "[0, 1]",
    "buckets": "[0, 2147483647]",
    "min_n": "[1, 100]",
    "max_n": "[1, 100]",
    "most_pieces": "[1, 100000]",
    "span": "[1, 4096]",
    "shared": "[1, 4096]",
}
EMBED, GRAMS = "embed/embedding", "heads/grams/embedding"
OUT, NODES = "heads/out/embedding", "heads/nodes/embedding"


@dataclasses.dataclass(frozen=True)
class Objective(RowObjective):
    """Options of `word2vec`; a row has up to `seq_len` words of whole texts.

    Attributes:
      architecture: "skipgram", in which each neighbour predicts the centre, or "cbow",
        in which the mean of the neighbours does.
      window: the most words on either side; each centre draws 1 to `window`.
      negatives: how many words of noise each prediction is set against; 0: none.
      power: noise is drawn in proportion to count ** power.
      hierarchical: whether the centre is predicted by hierarchical softmax, the only
        one of the two with probabilities that sum to 1. With negatives both are used.
      subsample: t of the probability with which a word is kept; 0 keeps all.
      buckets: rows for hashed character n-grams, as in fastText; 0: words only.
      min_n, max_n: characters of an n-gram, the signs < and > around a word included.
      most_pieces: how many n-grams of a word an update uses. Of a word with more, one
        is drawn from each of so many equal parts of them, so that a few long words do
        not slow down all; its vector is the mean of all of them.
      span: centres that share words of noise.
      shared: the words of noise of a span.
    """

    architecture: Literal["skipgram", "cbow"] = "skipgram"
    window: int = 5
    negatives: int = 5
    power: float = 0.75
    hierarchical: bool = False
    subsample: float = 1e-3
    buckets: int = 0
    min_n: int = 3
    max_n: int = 6
    most_pieces: int = 40
    span: int = 32
    shared: int = 32

    can: ClassVar[frozenset[str]] = RowObjective.can | {"vectors"}

    def rules(self, config: Any) -> Any:
        predicts = self.negatives > 0 or self.hierarchical
        expected = "some, or objective.hierarchical=true: else nothing is predicted"
        yield Rule(predicts, "objective.negatives", self.negatives, expected)
        expected = f"at least objective.min_n={self.min_n}"
        yield Rule(self.min_n <= self.max_n, "objective.max_n", self.max_n, expected)

    def heads(self) -> tuple[Head, ...]:
        """Returns the tables beside that of the words."""
        tables = []
        if self.negatives:
            tables.append(Head("out", partial(Rows, zero=True)))
        if self.hierarchical:
            tables.append(Head("nodes", partial(Rows, zero=True)))
        if self.buckets:
            tables.append(Head("grams", partial(Rows, rows=self.buckets)))
        return tuple(tables)

    # ── On the host ─────────────────────────────────────────────────────────────────

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        return ()

    def by_counts(
        self, counts: Callable[[], np.ndarray], codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        seen, code, pieces, ends = counts(), None, None, None
        if self.hierarchical:
            code = frequencies.huffman(seen)
        if self.buckets:
            pieces, ends = self._pieces(codec)
        names = ["contexts", "left", "right", "words", "pair_weights"]
        names += ["negatives"] if self.negatives else []
        names += ["pieces"] if self.buckets else []
        names += ["nodes", "turns"] if code else []
        neighbours = Neighbours(
            spans=-(-seq_len // self.span),
            span=self.span,
            window=self.window,
            keep=frequencies.keep_probability(seen, self.subsample),
            noise=frequencies.noise_table(seen, self.power),
            noise_range=frequencies.RANGE,
            shared=self.shared if self.negatives else 0,
            pieces=pieces,
            ends=ends,
            most_pieces=self.most_pieces,
            nodes=code.nodes if code else None,
            turns=code.turns if code else None,
        )
        return neighbours, transforms.Keep(tuple(names))

    def _buckets(self, word: str) -> tuple[int, ...]:
        return buckets_of(word, self.min_n, self.max_n, self.buckets)

    def _pieces(self, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
        """Returns the buckets of all words, and the end of each; special ones: none."""
        found = [
            () if id in codec.special_ids else self._buckets(codec.token(id))
            for id in range(codec.vocab_size)
        ]
        ends = np.cumsum([len(ids) for ids in found])
        return np.asarray([id for ids in found for id in ids] or [0], np.int32), ends

    # ── On the device ───────────────────────────────────────────────────────────────

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        pairs = (batch["left"] + batch["right"]).astype(jnp.float32)
        if self.architecture == "cbow":
            pairs = jnp.minimum(pairs, 1.0)
        total = (pairs * batch["pair_weights"]).sum()
        return dict.fromkeys(self._terms(), total)

    def _terms(self) -> list[str]:
        names = ["negative"] if self.negatives else []
        return names + (["hierarchical"] if self.hierarchical else [])

    def measures(self) -> tuple[str, ...]:
        return tuple(f"{name}_loss" for name in self._terms())

    def spans(self, batch: Batch) -> Spans:
        flat = {
            name: array.reshape(-1, *array.shape[2:])
            for name, array in batch.items()
            if name != "words"
        }
        return flat | {"weights": flat.pop("pair_weights")}

    def touched(self, spans: Spans) -> Touched:
        centers = spans["contexts"][:, self.window : -self.window]
        found = {"context": (EMBED, spans["contexts"])}
        if self.negatives:
            found["center"] = (OUT, centers)
            found["negative"] = (OUT, spans["negatives"])
        if self.hierarchical:
            found["node"] = (NODES, spans["nodes"])
        if self.buckets:
            found["piece"] = (GRAMS, jnp.maximum(spans["pieces"], 0))
        return found

    def terms(self, rows: dict[str, Float[Array, "..."]], spans: Spans) -> Terms:
        near = band(spans["left"], spans["right"], self.window)
        near *= spans["weights"][..., None]
        # The rows of each context: its word's, and those of its n-grams.
        context, real = rows["context"][:, :, None], jnp.ones(spans["contexts"].shape)
        real = real[:, :, None]
        if self.buckets:
            context = jnp.concatenate([context, rows["piece"]], axis=2)
            real = jnp.concatenate([real, spans["pieces"] >= 0], axis=2)
        if self.architecture == "skipgram":
            source, weights = mean_with_whole_gradient(context, real), near
        else:
            total = jnp.einsum("sckd,sck->scd", context, real)
            source, weights = _bag(total, real.sum(axis=2), near)
        found: Terms = {}
        if self.negatives:
            found["negative"] = self._negative(rows, spans, source, weights)
        if self.hierarchical:
            found["hierarchical"] = self._hierarchical(rows, spans, source, weights)
        return found

    def _negative(
        self,
        rows: dict[str, Float[Array, "..."]],
        spans: Spans,
        source: Float[Array, "S Q D"],
        weights: Float[Array, "S L Q"],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sums -log sigmoid(v u) - negatives x mean of log sigmoid(-n u) over pairs.

        Noise equal to a pair's centre is left out, as in the published programs.

        Args:
          source: the vectors that predict: contexts, or the mean of each window.
          weights: whether vector q predicts centre l.
        """
        centers = spans["contexts"][:, self.window : -self.window]
        other = centers[:, :, None] != spans["negatives"][:, None, :]
        shared = spans["negatives"].shape[1]
        noise = jnp.einsum("slq,sln->snq", weights, other.astype(jnp.float32))
        noise *= self.negatives / shared
        # One product for centres and noise is faster than two.
        targets = jnp.concatenate([rows["center"], rows["negative"]], axis=1)
        scores = jnp.einsum("std,sqd->stq", targets, source)
        labels = (jnp.arange(targets.shape[1]) < centers.shape[1])[:, None]
        every = jnp.concatenate([weights, noise], axis=1)
        return (every * log_sigmoid_loss(scores, labels)).sum(), weights.sum()

    def _hierarchical(
        self,
        rows: dict[str, Float[Array, "..."]],
        spans: Spans,
        source: Float[Array, "S Q D"],
        weights: Float[Array, "S L Q"],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sums -log p(centre | source) over pairs: a product over the centre's path."""
        turns = spans["turns"]
        scores = jnp.einsum("slpd,sqd->slpq", rows["node"], source)
        losses = log_sigmoid_loss(scores, (turns == 0)[..., None])
        on_path = (turns >= 0).astype(jnp.float32)
        total = jnp.einsum("slpq,slp,slq->", losses, on_path, weights)
        return total, weights.sum()

    # ── The vectors of words ────────────────────────────────────────────────────────

    def spell(self, words: Sequence[str], codec: Codec) -> np.ndarray:
        """Returns (W, 1 + K) rows: the word's own, then those of its n-grams.

        -1 is none: an unknown word has n-grams alone, and without buckets nothing.
        """
        own = super().spell(words, codec)
        if not self.buckets:
            return own
        found = [self._buckets(word) for word in words]
        table = np.full((len(words), max(map(len, found), default=0)), -1, np.int32)
        for row, ids in zip(table, found):
            row[: len(ids)] = ids
        return np.concatenate([own, table], axis=1)

    def embed(self, model: Any, ids: Int[Array, "W K"]) -> Float[Array, "W D"]:
        """Computes the mean of the rows of each word."""
        real = (ids >= 0).astype(jnp.float32)
        rows = model.vectors(jnp.maximum(ids[:, :1], 0))
        if self.buckets:
            grams = model.tables()[GRAMS][jnp.maximum(ids[:, 1:], 0)]
            rows = jnp.concatenate([rows, grams], axis=1)
        return mean_with_whole_gradient(rows, real)


def band(
    left: Int[Array, "S L"], right: Int[Array, "S L"], window: int
) -> Float[Array, "S L C"]:
    """Marks the contexts in the window of each centre, itself left out."""
    size = left.shape[1]
    offset = jnp.arange(size + 2 * window) - jnp.arange(size)[:, None] - window
    inside = (offset >= -left[..., None]) & (offset <= right[..., None])
    return (inside & (offset != 0)).astype(jnp.float32)


def _bag(
    total: Float[Array, "S C D"],
    count: Float[Array, "S C"],
    near: Float[Array, "S L C"],
) -> tuple[Float[Array, "S L D"], Float[Array, "S L L"]]:
    """Computes the mean of each window's rows, and that it predicts its own centre."""
    sums, rows = near @ total, near @ count[..., None]
    means = sums / jnp.maximum(rows, 1)
    own = jnp.eye(near.shape[1]) * (near.sum(axis=2) > 0)[..., None]
    return sums + jax.lax.stop_gradient(means - sums), own.astype(jnp.float32)
