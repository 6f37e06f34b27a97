"""One step of training or evaluation: the pure functions that are compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from lm.training.optim import global_norm

Batch = dict[str, Array]


class State(NamedTuple):
    """Everything that training changes; what a run does not use is `{}`.

    Attributes:
      step: the updates made so far.
      params: the parameters that the next update changes.
      opt_state: the optimiser's.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


class Program(NamedTuple):
    """A model and an objective as functions; `run.open_program` compiles them.

    Attributes:
      model: the module.
      init: key -> parameters.
      metrics: (params, batch) -> {metric: (sum, count)}.
      predict: (params, batch) -> the batch and the objective's predictions. Compiled,
        both this and `metrics` give whole arrays on every process.
      mesh: the devices; None before it is laid out over some.
      params: the parameters' shapes, types and shardings.
      axes: the logical names of each parameter's axes.
    """

    model: Any
    init: Callable[[Array], PyTree]
    metrics: Callable[[PyTree, Batch], dict[str, tuple[Array, Array]]]
    predict: Callable[[PyTree, Batch], tuple[Batch, dict[str, Array]]]
    mesh: Any = None
    params: PyTree = None
    axes: PyTree = None


class Training(NamedTuple):
    """What an optimiser adds; `run.open_training` compiles it.

    Attributes:
      start: parameters -> State, before the first update.
      update: (State, batch) -> (State, measurements). Compiled, it takes the state's
        buffers.
      loss: (State, batch) -> the loss that the next update differentiates.
      gradients: (State, batch) -> its gradients.
      state: the state's shapes, types and shardings; None before it is laid out.
    """

    start: Callable[[PyTree], State]
    update: Callable[[State, Batch], tuple[State, dict[str, Float[Array, ""]]]]
    loss: Callable[[State, Batch], Float[Array, ""]]
    gradients: Callable[[State, Batch], PyTree]
    state: Any = None


def logical_axes(model: Any) -> PyTree:
    """Returns the names of each parameter's axes, as the model's modules give them."""
    key = jax.random.key(0)
    boxes = jax.eval_shape(lambda: model.init({"params": key}, method="touch"))
    return jax.tree.map(
        lambda box: box.axes,
        boxes.get("params", {}),
        is_leaf=lambda node: isinstance(node, nn.meta.AxisMetadata),
    )


def make(model: Any, objective: Any) -> Program:
    """Binds a model and an objective into pure functions; nothing is compiled yet."""

    def init(key: Array) -> PyTree:
        return nn.meta.unbox(
            model.init({"params": key}, method="touch").get("params", {})
        )

    def metrics(params: PyTree, batch: Batch) -> dict:
        return model.apply(
            {"params": params}, batch, method=lambda m, b: objective.metrics(m, b)
        )

    def predict(params: PyTree, batch: Batch) -> tuple:
        return batch, model.apply(
            {"params": params}, batch, method=lambda m, b: objective.predict(m, b)
        )

    return Program(model, init, metrics, predict)


def make_training(
    model: Any,
    objective: Any,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    *,
    seed: int,
    grad_accum: int,
    halt: bool = True,
) -> Training:
    """Binds a model, an objective and an optimiser into the update of a state.

    An update first totals each term's count over the whole batch, then adds up over
    micro-batches the gradient of the sum over terms of sum / total; so micro-batches
    of uneven counts, and any split over devices, average as the full batch does.

    An update whose loss or gradient is not finite changes nothing but `step`; with
    `halt`, nor does any after it, until the host has seen it.
    """

    def start(params: PyTree) -> State:
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def loss(params: PyTree, batch: Batch, totals: dict, key: Array) -> tuple:
        terms = model.apply(
            {"params": params},
            batch,
            method=lambda m, b: objective.loss(m, b, train=True),
            rngs={"dropout": key},
        )
        means = {
            name: total / jnp.maximum(totals[name], 1.0)
            for name, (total, _) in terms.items()
        }
        return sum(means.values()), means

    def shared(state: State, batch: Batch) -> tuple[dict, Array]:
        """What all micro-batches have in common: the counts, and a key."""
        # rbg bits cost a fraction of threefry's; the step alone makes them its own.
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        return objective.counts(batch), key

    def differentiate(state: State, batch: Batch) -> tuple:
        totals, key = shared(state, batch)
        gradient = jax.value_and_grad(loss, has_aux=True)
        if grad_accum == 1:
            (value, means), grads = gradient(state.params, batch, totals, key)
        else:

            def accumulate(carry: PyTree, number_and_part: tuple) -> tuple:
                number, part = number_and_part
                key_of_part = jax.random.fold_in(key, number)
                found = gradient(state.params, part, totals, key_of_part)
                return jax.tree.map(jnp.add, carry, found), None

            parts = jax.tree.map(lambda x: _split(x, grad_accum), batch)
            shapes = jax.eval_shape(gradient, state.params, batch, totals, key)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            numbered = jnp.arange(grad_accum), parts
            ((value, means), grads), _ = jax.lax.scan(accumulate, zeros, numbered)
        return value, means, totals, grads

    def update(state: State, batch: Batch) -> tuple[State, dict]:
        value, means, totals, grads = differentiate(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = opt_state.gradient_norm
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        if halt:
            sound &= jnp.isfinite(state.opt_state.gradient_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        if halt:
            opt_state = opt_state._replace(gradient_norm=norm)
        measurements = {
            "train/loss": value,
            **{f"train/{name}_loss": mean for name, mean in means.items()},
            **{f"train/{name}_count": count for name, count in totals.items()},
            "optim/applied": sound.astype(jnp.float32),
            "optim/lr": schedule(state.opt_state.count),
            "optim/gradient_norm": norm,
            "optim/parameter_norm": global_norm(params),
            "optim/update_norm": global_norm(updates),
        }
        return State(state.step + 1, params, opt_state), measurements

    return Training(
        start,
        update,
        lambda state, batch: loss(state.params, batch, *shared(state, batch))[0],
        lambda state, batch: differentiate(state, batch)[-1],
    )


def _split(x: Array, parts: int) -> Array:
    """(B, ...) to (parts, B / parts, ...), each device keeping rows that it has."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
