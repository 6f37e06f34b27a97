"""Prefill and single-token decoding with a cache: what the loops of decoding repeat.

Each layer's weights and cache are arrays of their own here. In a loop over tokens a
stack of them, which the model works with, would be copied at every token.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.models.base import Decodes, Rows

NOTHING = -1  # stands in place of a token after the end of a text


def split(tree: PyTree) -> PyTree:
    """Makes the stacked `layers` of parameters a tuple of trees, one for each layer."""
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


@struct.dataclass
class Layers:
    """A stacked array of a cache, apart: an array for each layer."""

    each: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A model with a cache, as pure functions of arrays.

    Attributes:
      model: one that can "extend", its layers unrolled.
      allowed: (V,) which tokens may be generated.
      ends: the ids that end a text; () if nothing does.
    """

    model: Decodes
    allowed: Bool[np.ndarray, "V"]
    ends: tuple[int, ...]

    def ended(self, token: Int[Array, "*any"]) -> Bool[Array, "*any"]:
        """Returns which tokens end a text."""
        return jnp.isin(token, jnp.asarray(self.ends, jnp.int32))

    def read(
        self, params: PyTree, prompts: dict[str, Int[Array, "B P"]], room: int
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Gives logits after the prompts, and a cache with room for more tokens.

        Args:
          params: as `split` gives them.
          prompts: a batch, its last positions taken.
          room: for how many more tokens.
        """
        rows, length = prompts["inputs"].shape
        source_length = prompts.get("source_inputs", prompts["inputs"]).shape[1]
        cache = self.model.make_cache(rows, length + room, source_length)
        return self.extend(params, prompts, self._split(cache))

    def extend(
        self, params: PyTree, batch: dict[str, Int[Array, "B T"]], cache: PyTree
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Gives logits after the last position of each row, and the cache extended."""

        def run(model: Any, cache: PyTree) -> tuple[jax.Array, PyTree]:
            hidden, cache = model.extend(batch, cache)
            return model.logits(hidden[:, -1]), cache

        variables = {"params": join(params)}
        logits, cache = self.model.apply(variables, self._join(cache), method=run)
        return logits, self._split(cache)

    def repeat(self, cache: PyTree, times: int) -> PyTree:
        """Repeats each row of a cache, one after the other."""

        def copies(rows: Rows, leaf: jax.Array) -> jax.Array:
            axis = _axis(rows)
            return leaf if axis is None else jnp.repeat(leaf, times, axis=axis)

        return self._by_rows(copies, cache)

    def reorder(self, cache: PyTree, order: Int[Array, "R"]) -> PyTree:
        """Puts row order[r] of a cache in place of its row r, of the same prompt.

        What the rows of a prompt share stays where it is.
        """

        def ordered(rows: Rows, leaf: jax.Array) -> jax.Array:
            axis = _axis(rows)
            if axis is None or rows.shared:
                return leaf
            return leaf[(*[slice(None)] * axis, order)]

        return self._by_rows(ordered, cache)

    def _by_rows(
        self, change: Callable[[Rows, jax.Array], Any], cache: PyTree
    ) -> PyTree:
        """The cache with each array changed; those of stacked layers one by one."""
        return jax.tree.map(
            lambda rows, part: jax.tree.map(functools.partial(change, rows), part),
            self.model.cache_rows(),
            cache,
        )

    def _split(self, cache: PyTree) -> PyTree:
        """Makes each stacked array of a cache `Layers`."""
        return self._by_rows(
            lambda rows, leaf: Layers(tuple(leaf)) if rows.stacked else leaf, cache
        )

    def _join(self, cache: PyTree) -> PyTree:
        def joined(rows: Rows, part: PyTree) -> PyTree:
            if not rows.stacked:
                return part
            return jax.tree.map(
                lambda layers: jnp.stack(layers.each),
                part,
                is_leaf=lambda node: isinstance(node, Layers),
            )

        return jax.tree.map(joined, self.model.cache_rows(), cache)


def _axis(rows: Rows) -> int | None:
    """The axis of the rows in an array as decoding keeps it, of one layer."""
    if rows.axis is None:
        return None
    return rows.axis - rows.stacked


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
