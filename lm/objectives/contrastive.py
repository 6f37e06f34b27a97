"""Vectors of texts, by which similar texts are near each other (Gao et al. 2021).

An encoder reads each text of a record by itself, and its states are pooled to a vector
(Reimers and Gurevych 2019). A row of a batch has all texts of a record, which the model
reads as rows of their own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm.data import labels, texts, transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.sources.base import Record
from lm.errors import Rule
from lm.models import base as models
from lm.models.base import Head, Headed, Trunk
from lm.models.blocks.heads import POOLS
from lm.objectives import base
from lm.objectives.base import Asked, Batch, Rows, Terms
from lm.objectives.targets import shortest
from lm.ops import contrastive, losses
from lm.tokenizers.base import Codec

BOUNDS = {
    "scale": "(0, 1000]",
    "margin": "(0, inf)",
    "dims": "[1, 1048576]",
    "grad_cache": "[0, 16777216]",
}
READ = ("text_keys", "inputs", "positions", "segment_ids", "token_types")
POOLED = {"cls": "first", "last": "last", "max": "max", "mean": "mean"}
MOST = 100.0  # the greatest learned scale (Radford et al. 2021, section 2.5)


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `contrastive`; `seq_len` is the length of a text.

    Attributes:
      texts: the columns of the texts: an anchor, its positive, and hard negatives. The
        same column twice makes a text its own positive, by two draws of dropout
        (SimCSE, Gao et al. 2021, section 3).
      label: the column of the similarity of two texts, or None.
      between: the least and the greatest label; others are refused. () allows any.
      kind: of the loss. "infonce": the positive of each text among all positives and
        hard negatives of the batch, over all devices, without equal texts. "cosent":
        texts of a higher label are nearer, over all pairs of records in the batch (Su
        2022). "cosine": the squared error of the similarity against the label, which
        `between` maps to 0 to 1; these two need `label`. "triplet": how much a hard
        negative lacks to be less similar than the positive by `margin`, the mean over
        the hard negatives (Schroff et al. 2015, equation 1; Reimers and Gurevych 2019,
        section 3). "cosine" and "triplet" take each record by itself.
      similarity: of two vectors, the cosine, the dot product, or, for "triplet", minus
        their distance.
      scale: its factor in "infonce" and "cosent", which is 1 / temperature.
      margin: of "triplet"; Reimers and Gurevych take 1 with euclidean distances.
      learn_scale: whether the factor is a parameter, which starts there and is at most
        100 (Radford et al. 2021, section 2.5).
      symmetric: whether "infonce" also finds the anchor of each positive.
      grad_cache: how many records are read at a time in training, with the gradient of
        the whole batch (GradCache, Gao et al. 2021): the vectors of all are computed
        first, and each part is read again, with the same dropout, for its gradient. So
        memory is that of one part, and a step costs another forward pass. 0: all at
        once. Dropout draws other masks for another size.
      dims: fewer dimensions, for the first so many of which the loss is taken too; the
        loss is the mean of all (Matryoshka, Kusupati et al. 2022).
      pooling: what the vector of a text is: the mean or the largest value of each
        number over its tokens, special tokens included, or the state of its first
        ("cls") or last token.
      normalize: whether vectors that are given out have length 1.
      wrap: the special tokens around a text: [CLS] and [SEP], the token that begins a
        text, or none.
      too_long: what to do with a text that does not fit: refuse it, cut its end, or
        skip the record. A blank text is refused, kept or skipped accordingly.
    """

    texts: tuple[str, ...] = ("text", "positive")
    label: str | None = None
    between: tuple[float, ...] = ()
    kind: Literal["infonce", "cosent", "cosine", "triplet"] = "infonce"
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine"
    scale: float = 20.0
    margin: float = 0.3
    learn_scale: bool = False
    symmetric: bool = False
    grad_cache: int = 0
    dims: tuple[int, ...] = ()
    pooling: Literal["mean", "cls", "max", "last"] = "mean"
    normalize: bool = True
    wrap: Literal["delimiters", "bos", "none"] = "delimiters"
    too_long: Literal["error", "cut", "skip"] = "cut"

    @property
    def can(self) -> frozenset[str]:  # type: ignore[override]
        scored = {"similarities"} if self.label else set()
        return frozenset({"embeddings", "answers", "show"} | scored)

    @property
    def needs(self) -> frozenset[str]:
        words = {"hidden"} | ({"head"} if self.learn_scale else set())
        return frozenset(words | ({"whole"} if self.pooling == "cls" else set()))

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"token_types"})

    @property
    def packs(self) -> bool:
        return False

    @property
    def interacts(self) -> bool:
        return self.kind in ("infonce", "cosent")

    def heads(self) -> tuple[Head, ...]:
        if not self.learn_scale:
            return ()
        return (Head("scale", functools.partial(Scale, start=self.scale)),)

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        where, count = "objective.texts", len(self.texts)
        scored = self.kind in ("cosent", "cosine")
        expected = "at least two columns: the same one twice for unsupervised SimCSE"
        yield Rule(count >= 2, where, self.texts, expected)
        expected = f"two columns, whose similarity {self.kind} learns"
        yield Rule(count == 2 or not scored, where, self.texts, expected)
        expected = "an anchor, a positive and hard negatives, for kind=triplet"
        yield Rule(count > 2 or self.kind != "triplet", where, self.texts, expected)
        expected = f"a column of numbers, for objective.kind={self.kind}"
        holds = self.label is not None or not scored
        yield Rule(holds, "objective.label", None, expected)
        expected = "two columns, of which objective.label is the similarity"
        yield Rule(count == 2 or self.label is None, where, self.texts, expected)
        least, most = self.between if len(self.between) == 2 else (0.0, 0.0)
        expected = "(least, most), or () for any number"
        holds = not self.between or least < most
        yield Rule(holds, "objective.between", self.between, expected)
        expected = "infonce, the only kind that finds the anchor of a positive"
        holds = not self.symmetric or self.kind == "infonce"
        yield Rule(holds, "objective.kind", repr(self.kind), expected)
        expected = "infonce or cosent, which have a scale"
        holds = not self.learn_scale or self.interacts
        yield Rule(holds, "objective.kind", repr(self.kind), expected)
        expected = "cosine or dot, but for objective.kind=triplet"
        holds = self.similarity != "euclidean" or self.kind == "triplet"
        yield Rule(holds, "objective.similarity", repr(self.similarity), expected)
        yield from self._cache_rules(config)
        holds = self.scale <= MOST or not self.learn_scale
        expected = f"at most {MOST:g}, the greatest that is learned"
        yield Rule(holds, "objective.scale", self.scale, expected)
        width = config["model"].get("d_model")
        wide = [dim for dim in self.dims if width is not None and dim >= width]
        expected = f"less than model.d_model={width}"
        yield Rule(not wide, "objective.dims", wide[:1], expected)

    def _cache_rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        """Yields the conditions on `grad_cache`."""
        where, size = "objective.grad_cache", self.grad_cache
        rows = config["batch_size"]
        expected = f"0 for objective.kind={self.kind}: grad_accum cuts such batches"
        yield Rule(not size or self.interacts, where, size, expected)
        expected = f"a divisor of batch_size={rows}"
        yield Rule(not size or rows % size == 0, where, size, expected)

    def small(self) -> dict[str, Any]:
        return {"grad_cache": min(self.grad_cache, 4)}

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.texts))

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        return texts.Texts(
            columns=self.texts,
            labels=labels.Number(self.label, self.between) if self.label else None,
            length=seq_len,
            overhead=sum(map(len, self._around(codec))),
            too_long=self.too_long,
        )

    def _around(self, codec: Codec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the special tokens before and after a text."""
        return base.around(codec, self.wrap)

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "token_types", "text_keys")
        own = ("label_weights", "labels") if self.label else ("label_weights",)
        return (
            texts.Interleave(*self._around(codec), seq_len, codec.pad_id or 0),
            texts.TextKeys(),
            texts.Score(),
            transforms.Keep((*names, *own)),
        )

    # ── On the device ───────────────────────────────────────────────────────────────

    def loss(self, model: models.States, batch: Batch, *, train: bool) -> Terms:
        each, _ = self._outputs(model, batch, train)
        return {"contrastive": losses.weighted(each, batch["label_weights"])}

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"contrastive": batch["label_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        ranks = self.kind in ("infonce", "triplet")
        right = ("contrastive_accuracy",) if ranks else ()
        return ("contrastive_loss", *right)

    def metrics(self, model: models.States, batch: Batch) -> Terms:
        """Returns the loss, and how many positives are nearer than all negatives."""
        found = dict(zip(self.measures(), self._outputs(model, batch, False)))
        weights = batch["label_weights"]
        return {k: losses.weighted(v, weights) for k, v in found.items()}

    def _outputs(
        self, model: models.States, batch: Batch, train: bool
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """Returns the loss of each row, and whether its positive is the nearest."""
        vectors = self._read(model, batch, train)
        scale: Any = self.scale
        if self.learn_scale:
            # `needs` requires "head", which reads no vector.
            scale = cast(Headed, model).head("scale", vectors, train=train)
        dims = (*self.dims, vectors.shape[-1])
        found = [self._compare(vectors[..., :dim], batch, scale) for dim in dims]
        each = jnp.mean(jnp.stack([each for each, _ in found]), axis=0)
        return each, found[-1][1]

    def _read(
        self, model: models.States, batch: Batch, train: bool
    ) -> Float[Array, "B K D"]:
        """Returns the vectors of the texts, by parts where `grad_cache` asks for it."""
        rows, size = len(batch["text_keys"]), self.grad_cache
        if not (train and 0 < size < rows):
            return self._vectors(model, batch, train)

        # A part keeps nothing but its vectors, and is read again in the backward pass.
        def read(model: Any, carry: tuple, part: Batch) -> tuple[tuple, Array]:
            return carry, self._vectors(model, part, train)

        scan = nn.scan(
            nn.remat(read),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
        )
        parts = {name: contrastive.parts(batch[name], rows // size) for name in READ}
        return contrastive.whole(scan(model, (), parts)[1])

    def _vectors(
        self, model: models.States, batch: Batch, train: bool
    ) -> Float[Array, "B K D"]:
        """Returns the vector of each text, in float32."""
        count = batch["text_keys"].shape[1]
        rows = {name: texts.apart(batch[name], count) for name in READ[1:]}
        hidden = model(rows, train=train)
        pool, real = POOLS[POOLED[self.pooling]], rows["segment_ids"] != 0
        vectors = pool(hidden.astype(jnp.float32), real)
        return vectors.reshape(-1, count, vectors.shape[-1])

    def _compare(
        self, vectors: Float[Array, "B K D"], batch: Batch, scale: Any
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """Returns what `_outputs` does, for some dimensions of the vectors."""
        weights = batch["label_weights"]
        if self.kind == "infonce":
            each, right = contrastive.infonce(
                self._unit(vectors),
                batch["text_keys"],
                weights,
                scale,
                symmetric=self.symmetric,
            )
            return each, right.astype(jnp.float32)
        if self.kind == "triplet":
            others = range(1, vectors.shape[1])
            near = [self._similarities(vectors, k) for k in others]
            each, right = contrastive.triplet(jnp.stack(near, axis=1), self.margin)
            return each, right.astype(jnp.float32)
        similarities, wanted = self._similarities(vectors), batch["labels"]
        if self.kind == "cosent":
            one = contrastive.cosent(similarities, wanted, weights, scale)
            each = jnp.full_like(wanted, one)
        else:
            least, most = self.between or (0.0, 1.0)
            each = jnp.square(similarities - (wanted - least) / (most - least))
        return each, jnp.zeros_like(each)

    def _unit(self, vectors: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        """Returns vectors whose dot product is the similarity."""
        return contrastive.unit(vectors) if self.similarity == "cosine" else vectors

    def _similarities(
        self, vectors: Float[Array, "B K D"], k: int = 1
    ) -> Float[Array, "B"]:
        """Returns the similarity of the first text of each row to text k."""
        if self.similarity == "euclidean":
            return -contrastive.distance(vectors[:, 0], vectors[:, k])
        unit = self._unit(vectors)
        first, second = unit[:, 0], unit[:, k]
        return jnp.einsum("bd,bd->b", first, second, precision="highest")

    def predict(self, model: models.States, batch: Batch) -> dict[str, Array]:
        """Returns `embeddings` (B, K, D), and `scores` (B,) of two texts or more."""
        vectors = self._read(model, batch, False)
        given = contrastive.unit(vectors) if self.normalize else vectors
        found = {"embeddings": given}
        if vectors.shape[1] > 1:
            found["scores"] = self._similarities(vectors)
        return found

    def label_of(self, target: np.ndarray | np.generic) -> float:
        return shortest(target)

    # ── Answers ─────────────────────────────────────────────────────────────────────

    def unlabelled(self) -> "Objective":
        """Returns this objective for single texts, in the first of its columns."""
        return dataclasses.replace(self, texts=self.texts[:1], label=None)

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        return {"embedding": ("embedding",)}

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the vector of a text, as a list of numbers of float32 precision."""
        if not rows:
            return dict.fromkeys(("embedding", "truncated"))
        vector = rows[0].predictions["embeddings"][0]
        return {"embedding": numbers(vector), "truncated": int(rows[0].row["cut"])}

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the texts, the label and the similarity of the first two."""
        count, one = len(self.texts), slice(row, row + 1)
        ids, segments = (
            np.asarray(texts.apart(jnp.asarray(batch[name][one]), count))
            for name in ("inputs", "segment_ids")
        )
        lines = [
            f"{name}: {codec.decode(ids[k][segments[k] > 0].tolist())}"
            for k, name in enumerate(self.texts)
        ]
        if "labels" in batch:
            lines.append(f"label: {float(batch['labels'][row]):g}")
        return "\n".join(
            [*lines, f"similarity: {float(predictions['scores'][row]):.4f}"]
        )


def numbers(vector: Float[np.ndarray, "D"]) -> list[float]:
    """Returns a float32 vector for JSON: in nine digits, which say every bit."""
    return [float(f"{number:.9g}") for number in vector.tolist()]


class Scale(nn.Module):
    """The factor of similarities, a positive parameter; it reads no hidden state."""

    trunk: Trunk
    start: float

    def setup(self):
        log = nn.initializers.constant(math.log(self.start))
        self.log_scale = self.param("log_scale", log, ())

    def __call__(self, hidden: Float[Array, "*any D"]) -> Float[Array, ""]:
        return jnp.minimum(jnp.exp(self.log_scale), MOST)
