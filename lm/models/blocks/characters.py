"""Features of the spelling of words: a convolution over their bytes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.models.base import Compute
from lm.models.blocks.layers import Dense, Table

SIZE = 30  # numbers of the embedding of a byte (Ma and Hovy 2016, section 3.2)
WIDTH = 3  # bytes that a filter sees


class Characters(nn.Module):
    """Computes a vector of each word from its UTF-8 bytes (Ma and Hovy 2016).

    Filters over neighbouring bytes, of which each gives its largest value in the word,
    and a dense layer to the size of a word's embedding, to which the result is added.

    Parameters: `byte/embedding`, `filter` and `output`, each with kernel and bias.

    Attributes:
      filters: their number.
      dim: the size of the result.
    """

    filters: int
    dim: int
    std: float
    compute: Compute

    def setup(self):
        self.byte = Table(257, SIZE, None, SIZE**-0.5)
        sizes = (WIDTH, SIZE), (self.filters,)
        fan = (WIDTH * SIZE) ** -0.5
        self.filter = Dense(*sizes, (None, None, None), fan, self.compute)
        out = (self.filters,), (self.dim,)
        self.output = Dense(*out, (None, "embed"), self.std, self.compute)

    def __call__(self, bytes: Int[Array, "B T M"]) -> Float[Array, "B T D"]:
        """Computes the vectors; zeros for a place without a byte.

        Args:
          bytes: of the word of each token, from 1 to 256; 0 is padding at its end.
        """
        real = bytes > 0
        x = self.byte()[bytes] * real[..., None]
        x = jnp.pad(x, [(0, 0), (0, 0), (WIDTH // 2, WIDTH // 2), (0, 0)])
        length = bytes.shape[-1]
        spans = [x[:, :, at : at + length] for at in range(WIDTH)]
        seen = self.filter(jnp.stack(spans, axis=3).astype(self.compute.dtype))
        # The least value of relu is 0, which padding must not exceed.
        most = jnp.max(jax.nn.relu(seen) * real[..., None], axis=2)
        return self.output(most) * jnp.any(real, axis=2)[..., None]
