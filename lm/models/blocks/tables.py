"""Tables of vectors that an objective adds to a model, as heads without inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.models.base import Trunk
from lm.models.blocks.layers import named


def small_uniform(key: jax.Array, shape: tuple[int, ...], dtype: object) -> jax.Array:
    """Draws from (-0.5, 0.5) / D, as word2vec and GloVe do."""
    return jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5) / shape[-1]


class Rows(nn.Module):
    """Contains a table of vectors, or of one bias for each word; a call returns it.

    It is the module of a `Head`, made with `functools.partial`. Every device has the
    whole of it.

    Attributes:
      rows: None: one for each word.
      zero: whether it begins at 0.
      bias: whether a row is one number.
    """

    trunk: Trunk
    rows: int | None = None
    zero: bool = False
    bias: bool = False

    def setup(self):
        rows, dim = self.rows or self.trunk.vocab_size, self.trunk.d_model
        init = nn.initializers.zeros if self.zero or self.bias else small_uniform
        if self.bias:
            self.values = self.param("bias", named(init, None), (rows,))
        else:
            self.values = self.param("embedding", named(init, None, None), (rows, dim))

    def __call__(self) -> Float[Array, "rows *D"]:
        return self.values
