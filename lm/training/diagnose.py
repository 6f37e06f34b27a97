"""Finds the source of a number that is not finite; describes what a resume changes."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import trees
from lm.errors import NumericalError
from lm.training import guard, optim
from lm.training.step import State, Training

Tree = Any


def look_into(
    fault: NumericalError,
    training: Training,
    before: State,
    batch: dict[str, Any],
    examples: str,
) -> NumericalError:
    """Adds to the error of an update the examples, and where the bad value arose.

    Args:
      before: the state before the update.
      batch: the batch of the update.
      examples: names that batch and its examples.
    """
    where = ""
    if fault.expected == guard.FINITE:
        found = first_bad(training.loss, training.gradients, before, batch)
        where = f"first bad: {found}; "
    found = f"{fault.found}; {where}{examples}"
    return NumericalError(fault.where, found, fault.expected, fault.fix)


def describe_change(
    old: tuple[optim.Optim, Callable[..., int]],
    new: tuple[optim.Optim, Callable[..., int]],
    step: int,
) -> str | None:
    """Describes how a config changes the learning rate of the steps that remain.

    Args:
      old, new: the settings, and the function from durations to steps.
      step: the last step made.

    Returns:
      A line with the learning rate of the next step by both; None if they agree on
      every step that both have.
    """
    totals = [steps_of("100%") for _, steps_of in (old, new)]
    left = np.arange(step, max(min(totals), step + 1))
    rates = [np.asarray(optim.schedule(*each)(left)) for each in (old, new)]
    if np.array_equal(rates[0], rates[1]):
        return None
    return (
        f"warning: the learning rate takes another course, over {totals[1]} steps "
        f"rather than {totals[0]}: at step {step + 1} it is {rates[1][0]:.6g}, by the "
        f"config so far {rates[0][0]:.6g}"
    )


def first_bad(
    loss: Callable[[Any, Any], Any],
    gradients: Callable[[Any, Any], Tree],
    state: Any,
    batch: dict[str, Any],
) -> str:
    """Finds the value of an update that is the first not to be finite.

    It looks at the batch, the parameters, the output of each module in a forward pass
    without compilation, and the gradients.

    Args:
      loss: (State, batch) -> the loss, not compiled.
      gradients: (State, batch) -> gradients in the parameters' tree.

    Returns:
      Such as "the output of layers/mlp, call 3 of it", for an error line.
    """
    for what, tree in (("batch", batch), ("parameter", state.params)):
        if path := first_in(tree):
            return f"the {what} {path}"
    try:
        if module := _first_module(functools.partial(loss, state, batch)):
            return f"the output of {module}"
        if path := first_in(gradients(state, batch)):
            return f"the gradient of {path}"
    except Exception as error:  # Such as no memory for the pass without compilation.
        return f"not found ({type(error).__name__} in looking for it)"
    return "not found: computed again, all is finite"


def first_in(tree: Tree) -> str | None:
    """Returns the path of the first leaf that is not finite, with its layer."""
    for path, bad in jax.device_get(_layers_bad(trees.flatten(tree))).items():
        if bad.any():
            names = trees.layer_names(path, bad) if bad.ndim else [path]
            return names[int(bad.argmax())]
    return None


@jax.jit
def _layers_bad(flat: dict[str, Any]) -> dict[str, Any]:
    """Flags each leaf that is not finite; in a stack, each layer."""
    found = {}
    for path, leaf in flat.items():
        axes = range(1, leaf.ndim) if trees.layer_stack(path) else None
        found[path] = ~jnp.isfinite(leaf).all(axis=axes)
    return found


def _first_module(loss: Callable[[], Any]) -> str | None:
    """Names the first module with an output that is not finite, and its call."""
    calls: dict[str, int] = {}
    found: list[str] = []

    def look(call: Callable, arguments: tuple, keywords: dict, context: Any) -> Any:
        result = call(*arguments, **keywords)
        leaves = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return result
        path = "/".join(context.module.path)
        name = (
            path
            if context.method_name == "__call__"
            else (f"{path}.{context.method_name}")
        )
        calls[name] = calls.get(name, 0) + 1
        if not found and not all(bool(jnp.isfinite(x).all()) for x in leaves):
            found.append(f"{name.strip('.') or 'the model'}, call {calls[name]} of it")
        return result

    with jax.disable_jit(), nn.intercept_methods(look):
        value = loss()
    if not found and not bool(jnp.isfinite(value)):
        found.append("the loss")
    return found[0] if found else None


copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@jax.jit
def bits(tree: Tree) -> dict[str, jax.Array]:
    """Sums the bits of each leaf as unsigned words; one flipped bit changes the sum."""

    def number(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(leaf, word)
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return {path: number(leaf) for path, leaf in trees.flatten(tree).items()}
