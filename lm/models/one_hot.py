"""One-hot vectors of words: each word is as far from every other one.

The baseline of word vectors: their similarity knows equal words and nothing else. The
vector of word i is row i of the identity matrix, so a table W has the rows W[i] =
one-hot(i) W. It is fitted by a pass over the data (`job = "fit"`), which counts the
words; nothing is trained, and there are no vectors in a checkpoint.

    counts    (V,) how often each word occurs in the training rows
"""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lm.models.base import Compute, Head, Shapes

BOUNDS = {"vocab_size": "[1, 16777216]", "vocab_multiple": "[1, 1048576]"}
CHANGEABLE = ()


class Model(nn.Module):
    """A vector of vocab_size numbers for each word, of which one is 1.

    Attributes:
      vocab_size: None is the tokenizer's.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"embeds", "tables", "fit"})
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    vectors_at: ClassVar[str] = "counts"
    statistics_on: ClassVar[Literal["host"]] = "host"

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any V"]:
        """Returns rows of the identity matrix."""
        assert self.vocab_size is not None  # filled in by the run
        return jax.nn.one_hot(ids, self.vocab_size)

    def tables(self) -> dict[str, Float[Array, "rows *D"]]:
        """Returns nothing: there is no table."""
        return {}

    def touch(self) -> None:
        """Makes nothing: the counts come from `improve`."""

    def flops(self, batch: Shapes) -> None:
        """Returns None: nothing is computed."""

    def small(self) -> dict[str, Any]:
        """Returns no field."""
        return {}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns no field."""
        return {}

    # ── Fitted by a pass ────────────────────────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Returns counts of 0."""
        return {"counts": np.zeros(self.vocab_size or 0, np.float32)}, {}

    def statistics(self, params: PyTree, batch: Shapes) -> PyTree:
        """Counts the centres of a batch."""
        contexts, real = (
            np.asarray(batch["contexts"]),
            np.asarray(batch["pair_weights"]),
        )
        window = (contexts.shape[-1] - real.shape[-1]) // 2
        centers = contexts[..., window : window + real.shape[-1]][real > 0]
        size = self.vocab_size or 0
        return {"counts": np.bincount(centers, minlength=size).astype(np.float32)}

    def merge(self, one: PyTree, other: PyTree) -> PyTree:
        """Adds up the counts."""
        return {"counts": one["counts"] + other["counts"]}

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Returns the counts, and how many words were seen."""
        return statistics, memory, {"words": float((statistics["counts"] > 0).sum())}
