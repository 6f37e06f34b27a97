"""Prefill and single-token decoding with a cache, which the loops of decoding repeat.

Here each layer's weights and cache are arrays of their own: a loop over tokens would
copy the stacked arrays that the model works with at every token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm import trees
from lm.models.base import Decodes, Rows

NO_TOKEN = -1  # stands in place of a token after the end of a text


@struct.dataclass
class Layers:
    """A stacked array of a cache as one array for each layer."""

    each: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class CachedModel:
    """A model with a cache, as pure functions of arrays.

    Attributes:
      model: has "extend" in `can`; its layers are unrolled.
      allowed: (V,) which tokens may be generated.
      ends: the ids that end a text; () if nothing does.
    """

    model: Decodes
    allowed: Bool[np.ndarray, "V"]
    ends: tuple[int, ...]

    def ended(self, token: Int[Array, "*any"]) -> Bool[Array, "*any"]:
        """Returns which tokens end a text."""
        return jnp.isin(token, jnp.asarray(self.ends, jnp.int32))

    def prefill(
        self, params: PyTree, prompts: dict[str, Int[Array, "B P"]], more: int
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Reads prompts; returns the logits after them, and the cache.

        Args:
          params: as `lm.trees.split_layers` returns them.
          prompts: a batch that is padded on the left.
          more: how many tokens the cache has room for after the prompts.
        """
        rows, length = prompts["inputs"].shape
        source_length = prompts.get("source_inputs", prompts["inputs"]).shape[1]
        cache = self.model.make_cache(rows, length + more, source_length)
        return self.extend(params, prompts, self._split(cache))

    def extend(
        self, params: PyTree, batch: dict[str, Int[Array, "B T"]], cache: PyTree
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Returns the logits after the last token of each row, and the cache."""

        def run(model: Any, cache: PyTree) -> tuple[jax.Array, PyTree]:
            hidden, cache = model.extend(batch, cache)
            return model.logits(hidden[:, -1]), cache

        # The compiler sees that nothing moves when layers are joined and split again.
        variables = {"params": trees.join_layers(params)}
        logits, cache = self.model.apply(variables, self._join(cache), method=run)
        return logits, self._split(cache)

    def repeat(self, cache: PyTree, times: int) -> PyTree:
        """Repeats each row of a cache, its copies side by side."""

        def repeated(rows: Rows, leaf: jax.Array) -> jax.Array:
            axis = _row_axis(rows)
            return leaf if axis is None else jnp.repeat(leaf, times, axis=axis)

        return self._map_leaves(repeated, cache)

    def reorder(self, cache: PyTree, order: Int[Array, "R"]) -> PyTree:
        """Copies row order[r] of a cache to its row r.

        Both belong to the same prompt, so arrays that are shared by the rows of a
        prompt stay as they are.
        """

        def reordered(rows: Rows, leaf: jax.Array) -> jax.Array:
            axis = _row_axis(rows)
            if axis is None or rows.shared:
                return leaf
            return leaf[(*[slice(None)] * axis, order)]

        return self._map_leaves(reordered, cache)

    def _map_leaves(self, change: Callable[[Rows, jax.Array], Any], cache: PyTree):
        """Applies a function to each array of a cache; of `Layers`, to each layer's."""
        return jax.tree.map(
            lambda rows, part: jax.tree.map(lambda leaf: change(rows, leaf), part),
            self.model.cache_rows(),
            cache,
        )

    def _split(self, cache: PyTree) -> PyTree:
        """Replaces each stacked array of a cache by `Layers`."""
        return self._map_leaves(
            lambda rows, leaf: Layers(tuple(leaf)) if rows.stacked else leaf, cache
        )

    def _join(self, cache: PyTree) -> PyTree:
        """Undoes `_split`."""

        def joined(rows: Rows, part: PyTree) -> PyTree:
            if not rows.stacked:
                return part
            return jax.tree.map(
                lambda layers: jnp.stack(layers.each),
                part,
                is_leaf=lambda node: isinstance(node, Layers),
            )

        return jax.tree.map(joined, self.model.cache_rows(), cache)


def _row_axis(rows: Rows) -> int | None:
    """Returns the axis of the rows in an array of one layer."""
    return rows.axis - 1 if rows.stacked and rows.axis is not None else rows.axis


def replicated(tree: PyTree) -> PyTree:
    """Copies a tree to every device of the mesh, so that every process can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.sharding.PartitionSpec())


def one_token_batch(
    token: Int[Array, "B"], position: Int[Array, "B"]
) -> dict[str, Int[Array, "B 1"]]:
    """Makes a batch of one token in each row."""
    batch = {
        "inputs": jnp.maximum(token, 0),
        "positions": position,
        "segment_ids": jnp.ones_like(position),
    }
    return {name: values[:, None] for name, values in batch.items()}
