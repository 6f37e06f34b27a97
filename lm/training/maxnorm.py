"""A bound on the norm of the weights that lead to one output unit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm import trees
from lm.errors import ConfigError

Tree = Any
Update = Callable[[Tree, Any, Tree], tuple[Tree, Any]]


def bounded(
    update: Update, table: Sequence[tuple[str, float]], shapes: Mapping[str, Any]
) -> Update:
    """Scales weights down after each update (Srivastava et al. 2014, section 5.1).

    In a kernel (inputs, outputs) the weights of each output form a vector; a vector
    whose Euclidean norm is above the bound is scaled to it, others stay as they are.

    Args:
      update: (gradients, state, parameters) -> what is added to them, and the state.
      table: (pattern, bound), as in `optim.max_norm`.
      shapes: the parameters by path.

    Raises:
      ConfigError: a pattern matches nothing, or a parameter without two axes.
    """
    names = {path: trees.layer_names(path, leaf) for path, leaf in shapes.items()}
    bounds = trees.match(
        table,
        [name for each in names.values() for name in each],
        where="optim.max_norm",
        default=np.inf,
        all_used=True,
    )
    limits = {}
    for path, leaf in shapes.items():
        found = np.array([bounds[name] for name in names[path]], np.float32)
        if np.isinf(found).all():
            continue
        axes = leaf.ndim - (trees.layer_stack(path) is not None)
        if axes != 2:
            raise ConfigError(
                "optim.max_norm",
                f"a pattern that matches {path!r}, of {axes} axes",
                "kernels of two axes: inputs, outputs",
            )
        limits[path] = found.reshape(-1, *[1] * (leaf.ndim - 1))

    def within(grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        updates, state = update(grads, state, params)
        changes, values = trees.flatten(updates), trees.flatten(params)
        for path, limit in limits.items():
            new = values[path] + changes[path]
            norm = jnp.linalg.norm(new.astype(jnp.float32), axis=-2, keepdims=True)
            scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
            changes[path] = jnp.where(
                scale < 1.0, new * scale - values[path], changes[path]
            )
        return trees.unflatten(updates, changes), state

    return within
