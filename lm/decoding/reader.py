"""A model that reads on: the program that the loops of decoding repeat.

Of every layer the weights and the cache are arrays of their own here. In a loop over
tokens a stack of them, which the model works with, would be copied at every token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

NOTHING = -1  # stands in place of a token after the end of a text


def split(tree: PyTree) -> PyTree:
    """Stacked `layers` of a tree of dicts as a tuple of trees, one for each layer."""
    if not isinstance(tree, dict):
        return tree
    parts = {name: split(part) for name, part in tree.items()}
    if "layers" in parts:
        count = len(jax.tree.leaves(parts["layers"])[0])
        parts["layers"] = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[i], parts["layers"])
            for i in range(count)
        )
    return parts


def join(tree: PyTree) -> PyTree:
    """Undoes `split`. The compiler sees through the two: nothing moves."""
    if not isinstance(tree, dict):
        return tree
    parts = {name: join(part) for name, part in tree.items()}
    if "layers" in parts:
        parts["layers"] = jax.tree.map(lambda *each: jnp.stack(each), *parts["layers"])
    return parts


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A model with a cache, as pure functions of arrays.

    Attributes:
      model: with a decoder, its layers unrolled.
      allowed: (V,) which words may be said.
      eos_id: what ends a text; NOTHING if nothing does.
    """

    model: Any
    allowed: Bool[np.ndarray, "V"]
    eos_id: int

    def read(
        self, params: PyTree, prompts: dict[str, Int[Array, "B P"]], room: int
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Logits after the prompts, and a cache with room for so many more tokens.

        Args:
          params: as `split` gives them; the cache is such a tree too.
          prompts: a batch, its last places taken.
        """
        rows, length = prompts["inputs"].shape
        source_length = prompts.get("source_inputs", prompts["inputs"]).shape[1]
        size = (rows, length + room, source_length)
        cache = self.model.apply({}, *size, method="make_cache")
        return self.extend(params, prompts, split(cache))

    def extend(
        self, params: PyTree, batch: dict[str, Int[Array, "B T"]], cache: PyTree
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Logits after the last place of each row, and the cache with new tokens."""

        def run(model: Any, cache: PyTree) -> tuple[jax.Array, PyTree]:
            hidden, cache = model.extend(batch, cache)
            return model.logits(hidden[:, -1]), cache

        variables = {"params": join(params)}
        logits, cache = self.model.apply(variables, join(cache), method=run)
        return logits, split(cache)


def everywhere(tree: PyTree) -> PyTree:
    """Whole on each device of the mesh, if there is one: every process can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.sharding.PartitionSpec())


def one_token(
    token: Int[Array, "B"], position: Int[Array, "B"]
) -> dict[str, Int[Array, "B 1"]]:
    """A batch of one token in each row."""
    batch = {
        "inputs": jnp.maximum(token, 0),
        "positions": position,
        "segment_ids": jnp.ones_like(position),
    }
    return {name: values[:, None] for name, values in batch.items()}
