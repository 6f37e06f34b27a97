"""Minimisation of a smooth convex function of many weights by its values and gradients.

`lbfgs` takes the curvature from its last steps (Liu and Nocedal 1989). `owlqn` adds an
L1 penalty, whose minimum has many weights that are exactly 0 (Andrew and Gao 2007).
Both end at the number of steps, or where no step makes the value smaller within the
precision of float32, and go on from the memory that they return.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

Loss = Callable[[PyTree], Float[Array, ""]]

TRIES = 30  # halvings of a step before it is given up
DECREASE = 1e-4  # of what the gradient promises, for a step to be taken (Armijo 1966)


class Found(NamedTuple):
    """Where a minimisation stands.

    Attributes:
      weights: the best ones.
      memory: a dictionary of arrays, for the next call.
      value: with the penalty.
      gradient: the largest component, of the pseudo-gradient with a penalty.
      steps: that were tried.
    """

    weights: PyTree
    memory: dict[str, Array]
    value: Float[Array, ""]
    gradient: Float[Array, ""]
    steps: Int[Array, ""]


def lbfgs(
    loss: Loss, weights: PyTree, memory: Any, *, steps: int, history: int
) -> Found:
    """Minimises a function, with a line search by the strong Wolfe conditions.

    Args:
      memory: of the call before, or None.
      steps: the most to take.
      history: how many steps are remembered.
    """
    solver = optax.lbfgs(memory_size=history)
    evaluate = optax.value_and_grad_from_state(loss)
    begun = solver.init(weights)
    if memory is not None:
        leaves = [memory[name] for name in sorted(memory)]
        begun = jax.tree.unflatten(jax.tree.structure(begun), leaves)

    def step(carry: tuple) -> tuple:
        number, _, weights, state = carry
        value, gradient = evaluate(weights, state=state)
        updates, after = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        lower = optax.tree_utils.tree_get(after, "value") < value
        new = optax.apply_updates(weights, updates), after
        keep = lambda a, b: jnp.where(lower, a, b)  # noqa: E731
        return (number + 1, lower, *jax.tree.map(keep, new, (weights, state)))

    def goes_on(carry: tuple) -> Bool[Array, ""]:
        return (carry[0] < steps) & carry[1]

    begin = (jnp.int32(0), jnp.bool_(True), weights, begun)
    number, _, weights, state = jax.lax.while_loop(goes_on, step, begin)
    value, gradient = jax.value_and_grad(loss)(weights)
    largest = jnp.max(
        jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)])
    )
    numbered = {f"{i:03}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return Found(weights, numbered, value, largest, number)


class _At(NamedTuple):
    """Where `owlqn` stands: a point, and the last steps of it and of its gradient."""

    point: Float[Array, "N"]
    value: Float[Array, ""]
    gradient: Float[Array, "N"]
    moves: Float[Array, "history N"]
    changes: Float[Array, "history N"]
    inverse: Float[Array, "history"]  # 1 / (move . change); 0: no such step
    taken: Int[Array, ""]


def owlqn(
    loss: Loss, c1: float, weights: PyTree, memory: Any, *, steps: int, history: int
) -> Found:
    """Minimises loss + c1 |w|_1 by the orthant-wise quasi-Newton method.

    A step stays in the orthant that the pseudo-gradient leads into; a weight that would
    leave it becomes 0. The curvature is that of the loss alone. The step is halved
    until the value is smaller.

    Args:
      loss: without the penalty.
      memory, steps, history: as for `lbfgs`.
    """
    begin, unravel = ravel_pytree(weights)
    smooth = jax.value_and_grad(lambda point: loss(unravel(point)))

    def evaluate(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = smooth(point)
        return value + c1 * jnp.sum(jnp.abs(point)), gradient

    def step(carry: tuple[Array, Array, _At]) -> tuple[Array, Array, _At]:
        number, _, at = carry
        slope = pseudo_gradient(at.point, at.gradient, c1)
        direction = -_times_inverse(slope, at)
        direction = jnp.where(direction * slope < 0, direction, 0.0)
        orthant = jnp.where(at.point != 0, jnp.sign(at.point), -jnp.sign(slope))

        def attempt(size: jax.Array) -> tuple[jax.Array, ...]:
            point = at.point + size * direction
            point = jnp.where(point * orthant > 0, point, 0.0)
            return size / 2, point, *evaluate(point)

        def too_high(trial: tuple) -> Bool[Array, ""]:
            size, point, value, _ = trial
            promised = DECREASE * jnp.vdot(slope, point - at.point)
            return ~(value <= at.value + promised) & (size > 0.5**TRIES)

        _, point, value, gradient = jax.lax.while_loop(
            too_high, lambda trial: attempt(trial[0]), attempt(jnp.float32(1.0))
        )
        move, change = point - at.point, gradient - at.gradient
        bend = jnp.vdot(move, change)
        place = at.taken % history
        lower = value < at.value
        new = _At(
            point,
            value,
            gradient,
            at.moves.at[place].set(move),
            at.changes.at[place].set(change),
            at.inverse.at[place].set(jnp.where(bend > 0, 1 / bend, 0.0)),
            at.taken + 1,
        )
        kept = jax.tree.map(lambda a, b: jnp.where(lower, a, b), new, at)
        return number + 1, lower, kept

    def goes_on(carry: tuple[Array, Array, _At]) -> Bool[Array, ""]:
        return (carry[0] < steps) & carry[1]

    if memory is None:
        none = jnp.zeros((history, begin.size), begin.dtype)
        past = {"moves": none, "changes": none, "inverse": jnp.zeros(history)}
        memory = past | {"taken": jnp.int32(0)}
    at = _At(begin, *evaluate(begin), **memory)
    number, _, at = jax.lax.while_loop(
        goes_on, step, (jnp.int32(0), jnp.bool_(True), at)
    )
    largest = jnp.max(jnp.abs(pseudo_gradient(at.point, at.gradient, c1)))
    memory = {name: getattr(at, name) for name in memory}
    return Found(unravel(at.point), memory, at.value, largest, number)


def pseudo_gradient(
    point: Float[Array, "N"], gradient: Float[Array, "N"], c1: float
) -> Float[Array, "N"]:
    """Returns the steepest slope of loss + c1 |w|_1 (Andrew and Gao 2007, section 3).

    It is 0 for a weight of 0 that the penalty holds there.

    Args:
      gradient: of the loss.
    """
    held = jnp.sign(gradient) * jnp.maximum(jnp.abs(gradient) - c1, 0.0)
    return jnp.where(point == 0, held, gradient + c1 * jnp.sign(point))


def _times_inverse(slope: Float[Array, "N"], at: _At) -> Float[Array, "N"]:
    """Multiplies by the approximate inverse of the Hessian (Nocedal 1980)."""
    history = len(at.inverse)
    newest_first = (at.taken - 1 - jnp.arange(history)) % history

    def back(vector: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        share = at.inverse[place] * jnp.vdot(at.moves[place], vector)
        return vector - share * at.changes[place], share

    vector, shares = jax.lax.scan(back, slope, newest_first)
    last = newest_first[0]
    length = jnp.vdot(at.changes[last], at.changes[last])
    scale = 1 / (at.inverse[last] * length)
    # Without a step before, one of length 1.
    usable = (at.inverse[last] > 0) & (length > 0)
    scale = jnp.where(usable, scale, 1 / jnp.maximum(jnp.linalg.norm(slope), 1e-30))

    def forth(vector: jax.Array, each: tuple) -> tuple[jax.Array, None]:
        place, share = each
        less = at.inverse[place] * jnp.vdot(at.changes[place], vector)
        return vector + (share - less) * at.moves[place], None

    return jax.lax.scan(forth, scale * vector, (newest_first, shares), reverse=True)[0]
