"""Optimisers of optax on stacked layers, each of which they see as a leaf."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
import optax.contrib

from lm import trees


def per_layer(
    inner: optax.GradientTransformation, *, whole: bool
) -> optax.GradientTransformation:
    """Applies an optimiser so that it sees every layer of a stack as a leaf.

    The norms, factored moments and matrices of LAMB, Adafactor or Muon are those of
    one layer. Mapping over the layers gives exactly what unstacked leaves give, while
    the state stays stacked and the program does not grow with the layers.
    """

    def groups(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, leaf in flat.items():
            stack = None if whole else trees.layer_stack(path)
            name = stack.replace("/", "_") if stack else "rest"
            found.setdefault(name, {})[path] = leaf
        return {name: trees.nest(leaves) for name, leaves in found.items()}

    def init(params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: (inner.init if name == "rest" else jax.vmap(inner.init))(leaves)
            for name, leaves in groups(params).items()
        }

    def update(
        grads: Mapping[str, Any], state: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        changes, states = {}, {}
        values = groups(params)
        for name, leaves in groups(grads).items():
            run = inner.update if name == "rest" else jax.vmap(inner.update)
            change, states[name] = run(leaves, state[name], values[name])
            changes.update(trees.flatten(change))
        return changes, states

    return optax.GradientTransformation(init, update)


def muon_axes(
    path: str, leaf: Any, *, stacked: bool = True
) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns which axes Muon takes as a matrix; None for a leaf that Adam updates.

    Muon is for the kernels of the layers (Jordan et al., 2024); embeddings, heads,
    biases and norms go to Adam. An attention kernel is one matrix over all heads,
    (D, N·H) for queries, keys and values and (N·H, D) for the output.
    """
    if not (trees.layer_stack(path) and path.endswith("kernel")):
        return None
    match len(leaf.shape) - stacked:
        case 2:
            return optax.contrib.MuonDimensionNumbers(0, 1)
        case 3 if path.endswith("/output/kernel"):
            return optax.contrib.MuonDimensionNumbers((0, 1), 2)
        case 3:
            return optax.contrib.MuonDimensionNumbers(0, (1, 2))
    return None
