"""A table of word vectors, beside the tables that its objective needs.

The vector of a word is its row of `embed/embedding`, which is its one-hot vector times
the table. The objective adds other tables as heads (`lm.models.blocks.tables`), such as
the output vectors of word2vec, and may have another rule for the vector of a word.

    counts               (V,) how often each word occurs in the training rows
    embed/embedding      (V, D)
    heads/<name>/...     tables of the objective
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.models.base import Compute, Head, Shapes, Trunk
from lm.models.blocks.heads import Modules
from lm.models.blocks.tables import Rows

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "d_model": "[1, 1048576]",
}
CHANGEABLE = ()


class Model(nn.Module):
    """A vector for each word, whatever stands around it.

    Attributes:
      vocab_size: None is the tokenizer's.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      d_model: the length of a vector.
      heads: the tables that the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    d_model: int = 100
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset({"embeds", "tables", "counts"})
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    vectors_at: ClassVar[str] = "embed/embedding"

    def setup(self):
        trunk = Trunk(self.d_model, self.vocab_size or 0, 1.0, compute=self.compute)
        self.embedding = Rows(trunk, name="embed")
        self.modules = Modules(self.heads, trunk, name="heads")
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        self.counts = self.param("counts", lambda key, n: zeros(n), self.vocab_size)

    def tables(self) -> dict[str, Float[Array, "rows *D"]]:
        """Returns every table by the path of its parameter."""
        found = {"embed/embedding": self.embedding()}
        for head in self.heads:
            values = self.modules(head.name)
            leaf = "embedding" if values.ndim == 2 else "bias"
            found[f"heads/{head.name}/{leaf}"] = values
        return found

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Returns the vectors of words."""
        return self.embedding()[ids]

    def counted(self, params: dict[str, Any], counts: Any) -> dict[str, Any]:
        """Returns new parameters with the number of occurrences of each word.

        Args:
          counts: of the words of the tokenizer, which may be fewer than V.
        """
        seen = jnp.zeros_like(params["counts"]).at[: len(counts)].set(counts)
        return params | {"counts": seen}

    def touch(self) -> None:
        """Makes every parameter."""
        self.tables()

    def flops(self, batch: Shapes) -> None:
        """Returns None: the work depends on the words that are kept."""

    def small(self) -> dict[str, Any]:
        """Returns the field of short vectors."""
        return {"d_model": 16}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns no field: nothing is random."""
        return {}
