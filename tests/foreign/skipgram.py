"""A model and an objective that lm has never heard of, in one file.

Skip-gram with a full softmax (Mikolov et al. 2013): a word predicts its neighbours. A
batch has neither `inputs` nor `segment_ids`.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.data import transforms
from lm.data.windows import NextToken, Windows
from lm.models.base import Compute
from lm.objectives import base


class Model(nn.Module):
    width: int = 8
    vocab_size: int | None = None
    compute: Compute = Compute()
    heads: tuple = ()

    can = frozenset({"vectors"})
    reads = frozenset()
    context = None

    def setup(self):
        self.center = nn.Embed(self.vocab_size, self.width)
        self.around = nn.Embed(self.vocab_size, self.width)

    def touch(self):
        one = jnp.zeros((1,), jnp.int32)
        self.around(one), self.center(one)

    def neighbours(self, words):
        """(..., V) log-probabilities of a neighbour of each word."""
        return nn.log_softmax(self.around.attend(self.center(words)))

    def flops(self, batch):
        return None

    def small(self):
        return {}

    def exact(self, length):
        return {}


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    reach: int = 2

    @property
    def needs(self):
        return frozenset({"vectors"})

    def layout(self, codec, *, seq_len, pack):
        return Windows(seq_len, seq_len, False, None, None)

    def transforms(self, index, codec, *, seq_len):
        pad = transforms.PadSides(seq_len, seq_len, codec.pad_id or 0)
        keep = transforms.Keep(("centers", "around", "pair_weights"))
        return NextToken(), pad, Pairs(self.reach), keep

    def loss(self, model, batch, *, train):
        found = model.neighbours(batch["centers"])
        scores = jnp.take_along_axis(found, batch["around"], axis=-1)
        weights = batch["pair_weights"]
        return {"pairs": (-(scores * weights).sum(), weights.sum())}

    def counts(self, batch):
        return {"pairs": batch["pair_weights"].sum()}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """For each word of a row those around it, with weight 0 beyond its ends."""

    reach: int

    def __call__(self, example, rng):
        words, real = example["inputs"], example["segment_ids"] != 0
        offsets = [n for n in range(-self.reach, self.reach + 1) if n]
        place = np.arange(len(words))[:, None] + offsets
        inside = (place >= 0) & (place < len(words))
        place = place.clip(0, len(words) - 1)
        weights = inside & real[place] & real[:, None]
        return example | {
            "centers": words,
            "around": words[place],
            "pair_weights": weights.astype(np.float32),
        }
