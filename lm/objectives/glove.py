"""GloVe: word vectors whose products are the logarithms of co-occurrence counts.

Pennington et al. 2014. Over all pairs (i, j) with a count X above 0, the loss is

    J = 1/2 sum f(X_ij) (w_i . c_j + b_i + b'_j - ln X_ij)^2
    f(x) = min(1, (x / x_max)^a)

The vector of a word is w + c. The published program trains with AdaGrad at 0.05, whose
sums of squares begin at 1.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.data import transforms
from lm.data.cooccurrences import Cooccurrences, Pairs
from lm.data.index import Index, Layout
from lm.errors import Rule
from lm.models.base import Head
from lm.models.blocks.tables import Rows
from lm.objectives.base import Batch, Terms
from lm.objectives.by_rows import RowObjective, Spans, Touched
from lm.tokenizers.base import Codec

BOUNDS = {
    "window": "[1, 1000]",
    "x_max": "(0, inf)",
    "power": "[0, 10]",
    "span": "[1, 1048576]",
}
WORDS, CONTEXTS = "embed/embedding", "heads/out/embedding"
WORD_BIAS, CONTEXT_BIAS = "heads/bias/bias", "heads/out_bias/bias"


@dataclasses.dataclass(frozen=True)
class Objective(RowObjective):
    """Options of `glove`; a row has up to `seq_len` pairs of words.

    Attributes:
      window: the distance in words at which a pair still counts, 1 / distance.
      x_max: the count from which on a pair has the full weight.
      power: of the weight below it.
      span: pairs that the update takes as a unit (update.size of them at a time).
    """

    window: int = 10
    x_max: float = 100.0
    power: float = 0.75
    span: int = 64

    def rules(self, config: Any) -> Iterator[Rule]:
        holds = config.seq_len % self.span == 0
        expected = f"a multiple of objective.span={self.span}"
        yield Rule(holds, "seq_len", config.seq_len, expected)
        count = len(config.data.sources)
        expected = "one source, whose pairs are added up"
        yield Rule(count == 1, "data.sources", f"{count} sources", expected)

    def heads(self) -> tuple[Head, ...]:
        return (
            Head("out", Rows),
            Head("bias", partial(Rows, bias=True)),
            Head("out_bias", partial(Rows, bias=True)),
        )

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        return Cooccurrences(
            length=seq_len,
            window=self.window,
            vocab_size=codec.vocab_size,
            dropped=tuple(sorted(codec.special_ids)),
            column=self.column,
        )

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("one", "other", "near", "pair_weights", "words")
        return Pairs(seq_len), transforms.Keep(names)

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        return {"pairs": batch["pair_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("pairs_loss",)

    def spans(self, batch: Batch) -> Spans:
        flat = {
            name: batch[name].reshape(-1, self.span)
            for name in ("one", "other", "near")
        }
        return flat | {"weights": batch["pair_weights"].reshape(-1, self.span)}

    def touched(self, spans: Spans) -> Touched:
        return {
            "word": (WORDS, spans["one"]),
            "context": (CONTEXTS, spans["other"]),
            "word_bias": (WORD_BIAS, spans["one"]),
            "context_bias": (CONTEXT_BIAS, spans["other"]),
        }

    def terms(self, rows: dict[str, Float[Array, "..."]], spans: Spans) -> Terms:
        near, real = spans["near"], spans["weights"]
        scores = jnp.einsum("snd,snd->sn", rows["word"], rows["context"])
        error = scores + rows["word_bias"] + rows["context_bias"] - jnp.log(near)
        weights = jnp.minimum(1.0, (near / self.x_max) ** self.power) * real
        return {"pairs": (0.5 * (weights * error**2).sum(), real.sum())}

    def embed(self, model: Any, ids: Int[Array, "W K"]) -> Float[Array, "W D"]:
        """Computes the sum of both vectors of each word."""
        tables = model.tables()
        return tables[WORDS][ids[:, 0]] + tables[CONTEXTS][ids[:, 0]]
