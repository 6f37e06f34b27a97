"""A convolutional network that reads texts, for classifiers (Kim 2014).

Filters of several widths slide over the embeddings of a text. With
`objective.summary="max"` the classifier sees the largest value of each filter over the
text ("max over time"), with dropout. Each token has one window of each width, centred
on it, in which what is outside of the text counts as zeros; so a text may be shorter
than a filter, and padding changes nothing.

    embed/embedding    static/embedding
    conv_<width>/{kernel,bias}    kernels (K, E, F), or (K, 2 E, F) of two channels
    pooler   heads/<name>/...
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import ConfigError
from lm.models.base import Batch, Compute, Head, Shapes, Trunk
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import Dense, Table, constrain
from lm.ops.convolution import pad, windows

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "d_embed": "[1, 1048576]",
    "widths": "[1, 4096]",
    "filters": "[1, 1048576]",
    "dropout": "[0, 1)",
}
CHANGEABLE = ()


class Model(nn.Module):
    """A layer of filters over the embeddings of a text, in both directions.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      d_embed: size of an embedding.
      embeddings: "trained", or "static", which no gradient changes (name
        "static/embedding" in optim.freeze, so that no decay does), or "both": two
        channels, of which each filter sees the two vectors of a token together.
      widths: how many tokens a filter sees, for each kind of filters.
      filters: number of filters of each width.
      dropout: of what the heads read.
      heads: the heads that the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    d_embed: int = 300
    embeddings: Literal["trained", "static", "both"] = "trained"
    widths: tuple[int, ...] = (3, 4, 5)
    filters: int = 100
    dropout: float = 0.5
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.widths or len({*self.widths}) < len(self.widths):
            expected = "one width or several, each once"
            raise ConfigError("model.widths", str(self.widths), expected)

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        return frozenset({"hidden", "head"})

    @property
    def reads(self) -> frozenset[str]:
        """Returns that a batch needs inputs, positions and segment_ids only."""
        return frozenset()

    @property
    def context(self) -> None:
        """Returns None: rows may have any length."""

    @property
    def d_model(self) -> int:
        """Returns the size of a hidden state: a number of each filter."""
        return len(self.widths) * self.filters

    def setup(self):
        # The deviation of uniform numbers from -0.25 to 0.25, as in the paper.
        table = (self.vocab_size, self.d_embed, "vocab", 0.5 / 12**0.5)
        if self.embeddings != "static":
            self.embed = Table(*table)
        if self.embeddings != "trained":
            self.static = Table(*table)
        size = self.d_embed * (2 if self.embeddings == "both" else 1)
        self.convs = [
            Dense(
                (width, size),
                (self.filters,),
                (None, "embed", "mlp"),
                (2.0 / (width * size)) ** 0.5,  # for ReLU (He et al. 2015)
                self.compute,
                name=f"conv_{width}",
            )
            for width in self.widths
        ]
        trunk = Trunk(
            d_model=self.d_model,
            vocab_size=self.vocab_size or 0,
            std=self.d_model**-0.5,
            dropout=self.dropout,
            compute=self.compute,
        )
        self.head_modules = Heads(self.heads, trunk)
        nn.share_scope(self, self.head_modules)

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Computes the value of each filter, after ReLU, at each token.

        Args:
          batch: `inputs` and `segment_ids`, each (B, T), beside others. A window ends
            where the segment of its token does.
          train: without effect: dropout is in the heads.
        """
        tokens, segments = batch["inputs"], batch["segment_ids"]
        x = jnp.concatenate([table[tokens] for table in self._tables()], axis=-1)
        x = x.astype(self.compute.dtype)
        x = constrain(x, self.compute.rules, "batch", "length", None)
        found = []
        for width, conv in zip(self.widths, self.convs):
            span = {"width": width, "ahead": width // 2}
            found.append(conv(windows(pad(x, **span), pad(segments, **span), **span)))
        return jax.nn.relu(jnp.concatenate(found, axis=-1))

    def _tables(self) -> list[Float[Array, "V E"]]:
        tables = [] if self.embeddings == "static" else [self.embed()]
        if self.embeddings != "trained":
            tables.append(jax.lax.stop_gradient(self.static()))
        # If one were sharded over "embed" too, the compiler would copy it for a gather.
        rules = self.compute.rules
        return [constrain(table, rules, "vocab", None) for table in tables]

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Computes the output of a head; see `lm.models.blocks.heads.Heads`."""
        return self.head_modules(name, hidden, segment_ids, train=train)

    def touch(self) -> None:
        """Calls every module once, so that `init` creates every parameter."""
        one = jnp.ones((1, 1), jnp.int32)
        hidden = self({"inputs": 0 * one, "segment_ids": one}, train=False)
        for head in self.heads:
            self.head(head.name, hidden, one, train=False)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs of one update: 3 x 2 x the products of each token."""
        rows, length = batch["inputs"].shape
        size = self.d_embed * (2 if self.embeddings == "both" else 1)
        return 6.0 * rows * length * sum(self.widths) * size * self.filters

    def small(self) -> dict[str, Any]:
        """Returns the fields of a few filters of small embeddings."""
        return {"d_embed": 8, "filters": 8}

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout; rows may have any length."""
        return {"dropout": 0.0}
