"""Embeddings of tokens, positions and segment types."""

import flax.linen as nn
from jaxtyping import Array, Float, Int

from lm.errors import ConfigError
from lm.models.blocks.layers import Dropout, Shape, Table, constrain, shape_norm
from lm.ops.positions import sinusoidal


class Embed(nn.Module):
    """Sums token, position and type embeddings, with dropout.

    The fields beside `shape` are those of `lm.models.transformer.Model`.
    """

    shape: Shape
    vocab_size: int
    max_len: int
    position: str
    position_offset: int
    token_types: int
    embedding: str

    def setup(self):
        shape, dim = self.shape, self.shape.d_model
        # Published models that initialise by fan-in have embeddings of deviation 1,
        # some of them by a smaller deviation and a scale of the embeddings.
        one = 1.0 if self.embedding == "plain" else dim**-0.5
        std = one if shape.init_std is None else shape.init_std
        self.token = Table(self.vocab_size, dim, "vocab", std)
        if self.position == "learned":
            rows = self.max_len + self.position_offset
            self.learned = Table(rows, dim, None, std, name="position")
        if self.token_types:
            self.type = Table(self.token_types, dim, None, std)
        if self.embedding == "norm":
            self.norm = shape_norm(shape)
        self.drop = Dropout(shape.dropout)

    def table(self) -> Float[Array, "V D"]:
        """Returns the token embeddings."""
        # If it were sharded over "embed" too, the compiler would copy it for a gather.
        return constrain(self.token(), self.shape.compute.rules, "vocab", None)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        types: Int[Array, "B T"] | None,
        *,
        train: bool,
    ) -> Float[Array, "B T D"]:
        x = self.table()[tokens]
        if self.embedding == "scaled":
            x *= self.shape.d_model**0.5
        if self.position == "learned":
            length = tokens.shape[1]
            if length > self.max_len:
                raise ConfigError(
                    where="model.max_len",
                    found=f"{self.max_len} with rows of {length} tokens",
                    expected="a table of positions as long as the rows",
                    fix=f"set model.max_len={length} or a shorter seq_len",
                )
            x += self.learned()[positions + self.position_offset]
        elif self.position == "sinusoidal":
            x += sinusoidal(positions + self.position_offset, self.shape.d_model)
        if self.token_types:
            # A model with fewer types than a batch, such as RoBERTa, uses its last one.
            x += self.type().at[types].get(mode="clip")
        if self.embedding == "norm":
            x = self.norm(x)
        x = self.drop(x.astype(self.shape.compute.dtype), train=train)
        return constrain(x, self.shape.compute.rules, "batch", "length", None)
