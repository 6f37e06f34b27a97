"""The step of an update that changes its parameters in place (`lm.updates.rows`).

It is to such an update what `make_training` of lm/training/step.py is to a gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from lm import trees
from lm.training import step
from lm.training.criterion import Plain
from lm.training.optim import Optimizer
from lm.training.step import Batch, State, Training


class RowState(NamedTuple):
    """State of the rule, carried from one update to the next.

    Attributes:
      count: the updates so far.
      gradient_norm: of the last update, over all of its mini-batches.
      squares: AdaGrad's, in the tree of the tables; {} for plain descent.
    """

    # As in lm.training.optim.OptimState.
    count: jax.Array  # type: ignore[assignment]
    gradient_norm: jax.Array
    squares: dict[str, Any]


def make_training(
    model: Any,
    objective: Any,
    optim: Mapping[str, Any],
    schedule: Callable[[Array], Array],
    *,
    seed: int,
    update: Any,
    halt: bool = True,
) -> Training:
    """Binds a model, an objective and an update of rows into the update of a state.

    A mini-batch whose loss or gradients are not finite changes nothing, nor does any
    after it in the batch; with `halt`, nor in a later one, until the host has seen it.

    Args:
      optim: the section of the config, which has the rule's name and options.
      update: of lm/updates, with `in_place`.
    """

    def tables(params: PyTree) -> dict[str, Array]:
        return model.apply({"params": params}, method="tables")

    def start(params: PyTree) -> State:
        zero = jnp.zeros(())
        squares = trees.nest(update.start(optim, tables(params)))
        state = RowState(jnp.zeros((), jnp.int32), zero, squares)
        return State(jnp.zeros((), jnp.int32), params, state)

    def advance(state: State, batch: Batch) -> tuple[State, dict]:
        old = state.opt_state
        # The mini-batches follow each other, so every device works on all of them.
        batch = {name: _whole(array) for name, array in batch.items()}
        rate = schedule(old.count)
        sound = jnp.isfinite(old.gradient_norm) if halt else jnp.bool_(True)
        new, squares, sums = update.sweep(
            objective,
            tables(state.params),
            trees.flatten(old.squares),
            batch,
            rate,
            sound,
        )
        params = trees.unflatten(state.params, trees.flatten(state.params) | new)
        norm = jnp.sqrt(sums.square)
        kept = norm if halt else jnp.zeros(())
        count = old.count + sums.sound
        means = {
            name: total / jnp.maximum(number, 1.0)
            for name, (total, number) in sums.terms.items()
        }
        measurements = {
            "train/loss": jnp.asarray(sum(means.values())),
            **{f"train/{name}_loss": mean for name, mean in means.items()},
            **{f"train/{n}_count": number for n, (_, number) in sums.terms.items()},
            "optim/applied": sums.sound.astype(jnp.float32),
            "optim/lr": rate,
            "optim/gradient_norm": norm,
        }
        opt_state = RowState(count, kept, trees.nest(squares))
        return State(state.step + 1, params, opt_state), measurements

    # Its loss and its gradients serve a diagnosis; it makes no step.
    def nothing(*trees: PyTree) -> Any:
        return {}

    idle = Optimizer(nothing, nothing)
    dense = step.make_training(
        Plain(model, objective),
        optimizer=idle,
        schedule=schedule,
        seed=seed,
        grad_accum=1,
        gradient=update,
    )
    return Training(start, advance, dense.loss, dense.gradients)


def _whole(array: Array) -> Array:
    """Gives every device all rows of an array; without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec())
