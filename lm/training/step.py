"""One step of training or evaluation: the pure functions that are compiled."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from lm import trees
from lm.errors import ConfigError
from lm.training import averaging, passes, sharding
from lm.training.criterion import Criterion, apply
from lm.training.optim import Optimizer, global_norm
from lm.updates.base import Rows, Update

Batch = dict[str, Array]
DISTIL = "distil"  # where a student keeps what maps its states to its teacher's


class State(NamedTuple):
    """State carried from one update to the next; a part that is not used is `{}`.

    Attributes:
      step: the updates made so far.
      params: the parameters that the next update changes.
      opt_state: the optimiser's.
      carried: the model's state after the previous rows, rows on axis 0 (`Carries`).
      averaged: the average of the parameters (`optim.ema`, or a schedule-free
        optimiser's), in their tree.
      average_from: the step after which that average begins (`optim.average_when`).
      frozen: the parameters under an adapter (lm/adapters). No update changes them, and
        no checkpoint holds them.
      teacher: the parameters of a teacher (lm/distilled.py), of which the same holds.
    """

    step: Int[Array, ""]
    # The defaults are never changed.
    params: PyTree = {}  # noqa: RUF012
    opt_state: PyTree = {}  # noqa: RUF012
    carried: PyTree = {}  # noqa: RUF012
    averaged: PyTree = {}  # noqa: RUF012
    average_from: PyTree = {}  # noqa: RUF012
    frozen: PyTree = {}  # noqa: RUF012
    teacher: PyTree = {}  # noqa: RUF012

    def weights(self, which: str = "averaged") -> PyTree:
        """Returns all parameters of the model.

        They are the average, where it is asked for and kept, or those that the next
        update changes, and the frozen ones.
        """
        asked = which == "averaged" and self.averaged
        found = trees.merge(self.frozen, self.averaged if asked else self.params)
        return trees.select(found, lambda path: not path.startswith(f"{DISTIL}/"))

    def saved(self) -> dict[str, PyTree]:
        """Returns what a checkpoint holds.

        `State(**saved, frozen=..., teacher=...)` gives the state back.
        """
        parts = self._asdict() | {"frozen": {}, "teacher": {}}
        return {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}


class Continued(NamedTuple):
    """Functions of an evaluation in which each batch goes on where the last one ended.

    Attributes:
      start: number of rows -> the model's state before any text.
      metrics, by_row, predict: (params, `Rows`) -> what those of `Program` return, and
        the state after these rows.
    """

    start: Callable[[int], PyTree]
    metrics: Callable[[PyTree, Rows], tuple[dict[str, tuple[Array, Array]], PyTree]]
    by_row: Callable[[PyTree, Rows], tuple[passes.ByRow, PyTree]]
    predict: Callable[[PyTree, Rows], tuple[tuple[Batch, dict[str, Array]], PyTree]]


class Program(NamedTuple):
    """The functions of a model with an objective; `compile_program` compiles them.

    Attributes:
      model: the module.
      init: key -> parameters.
      metrics: (params, batch) -> {metric: (sum, count)}.
      by_row: (params, batch) -> these, and what each row adds to them.
      predict: (params, batch) -> the batch and the objective's predictions. Compiled,
        this, `metrics`, `by_row` and `score` give whole arrays on every process.
      score: (params, batch) -> log p of each target, and whether it is the arg max; of
        an objective that offers "score".
      continued: `metrics` and `predict` for a model that carries its state.
      embed: (params, ids) -> the vectors of words (`Objective.embed`).
      mesh: the devices; None before it is laid out over some.
      params: the parameters' shapes, types and shardings.
      axes: the logical names of each parameter's axes.
      trains: tells of a parameter's path whether it is trained, and not frozen under an
        adapter.
    """

    model: Any
    init: Callable[[Array], PyTree]
    metrics: Callable[[PyTree, Batch], dict[str, tuple[Array, Array]]]
    by_row: Callable[[PyTree, Batch], passes.ByRow]
    predict: Callable[[PyTree, Batch], tuple[Batch, dict[str, Array]]]
    score: Callable[[PyTree, Batch], tuple[Array, Array]]
    continued: Continued
    embed: Callable[[PyTree, Array], Array]
    mesh: Any = None
    params: PyTree = None
    axes: PyTree = None
    trains: Callable[[str], bool] = lambda path: True

    def trained(self, params: PyTree) -> PyTree:
        """Returns the parameters that are trained."""
        return trees.select(params, self.trains)

    def frozen(self, params: PyTree) -> PyTree:
        """Returns the other parameters; {} if there are none."""
        return trees.select(params, lambda path: not self.trains(path))


class Training(NamedTuple):
    """The functions of the optimiser; `compile_training` compiles them.

    Attributes:
      start: parameters -> State, before the first update.
      update: (State, batch) -> (State, measurements). Compiled, it takes the state's
        buffers.
      loss: (State, batch) -> the loss that the next update differentiates.
      gradients: (State, batch) -> its gradients.
      state: the state's shapes, types and shardings; None before it is laid out.
      teacher: those of a teacher's parameters, which `start` does not make.
    """

    start: Callable[[PyTree], State]
    update: Callable[[State, Batch], tuple[State, dict[str, Float[Array, ""]]]]
    loss: Callable[[State, Batch], Float[Array, ""]]
    gradients: Callable[[State, Batch], PyTree]
    state: Any = None
    teacher: PyTree = {}  # noqa: RUF012 (never changed)


class PerShape:
    """An update that is compiled once for each shape of a batch.

    Args:
      update: a compiled function of (State, batch), as in `Training`.
    """

    def __init__(self, update: Any):
        self._update = update
        self._programs: dict[tuple, Any] = {}

    def knows(self, batch: Batch) -> bool:
        """Tells whether batches of this shape are compiled for."""
        return _shapes(batch) in self._programs

    def compile(self, state: State, batch: Batch) -> None:
        """Compiles the update for batches of this shape."""
        self._programs[_shapes(batch)] = self._update.lower(state, batch).compile()

    def __call__(
        self, state: State, batch: Batch
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        return self._programs[_shapes(batch)](state, batch)

    @property
    def largest(self) -> Any:
        """The program that was compiled for the largest batch; None before any was."""
        return self._programs.get(max(self._programs, key=_size, default=()))


def _shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in sorted(batch.items()))


def _size(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    return sum(math.prod(shape) for _, shape in shapes)


def compile_program(program: Program, mesh: Mesh, rules: sharding.Rules) -> Program:
    """Lays the parameters of a program out over a mesh, and compiles its functions.

    Args:
      rules: which mesh axes shard an axis of a parameter (`config.mesh.rules`).
    """
    shapes = jax.eval_shape(program.init, jax.random.key(0))
    axes = logical_axes(program.model)
    shardings = sharding.param_shardings(axes, shapes, mesh, rules)
    whole, rows = NamedSharding(mesh, PartitionSpec()), sharding.batch_sharding(mesh)
    return program._replace(
        mesh=mesh,
        params=sharding.placed(shapes, shardings),
        axes=axes,
        init=jax.jit(program.init, out_shardings=shardings),
        metrics=jax.jit(program.metrics, out_shardings=whole),
        by_row=jax.jit(program.by_row, out_shardings=whole),
        predict=jax.jit(program.predict, out_shardings=whole),
        score=jax.jit(program.score, out_shardings=whole),
        embed=jax.jit(program.embed, out_shardings=whole),
        continued=Continued(
            jax.jit(program.continued.start, static_argnums=0, out_shardings=rows),
            jax.jit(program.continued.metrics, out_shardings=(whole, rows)),
            jax.jit(program.continued.by_row, out_shardings=(whole, rows)),
            jax.jit(program.continued.predict, out_shardings=(whole, rows)),
        ),
    )


def compile_training(
    training: Training, program: Program, rules: sharding.Rules
) -> Training:
    """Lays the state out over the program's mesh, and compiles the update.

    `loss` is left as it is, for whoever runs it operation by operation.
    """
    shapes = jax.eval_shape(training.start, program.params)
    shardings = sharding.state_shardings(shapes, program.axes, program.mesh, rules)
    whole = NamedSharding(program.mesh, PartitionSpec())
    start, theirs = jax.jit(training.start, out_shardings=shardings), training.teacher
    places = jax.tree.map(lambda leaf: leaf.sharding, theirs)
    shapes, shardings = (
        shapes._replace(teacher=theirs),
        shardings._replace(teacher=places),
    )
    return training._replace(
        state=sharding.placed(shapes, shardings),
        start=start,
        update=jax.jit(
            training.update, out_shardings=(shardings, whole), donate_argnums=0
        ),
        gradients=jax.jit(training.gradients, out_shardings=shardings.params),
    )


def logical_axes(model: Any) -> PyTree:
    """Collects for each parameter the names of its axes, as the modules give them.

    A parameter without names has None for each, and lies whole on every device.
    """

    boxed = nn.meta.AxisMetadata

    def names(leaf: Any) -> tuple[str | None, ...]:
        if isinstance(leaf, nn.Partitioned):
            return tuple(leaf.names)
        if isinstance(leaf, boxed):
            box: Any = leaf  # ours, lm.models.blocks.layers.Named
            return box.axes
        return (None,) * leaf.ndim

    key = jax.random.key(0)
    boxes = jax.eval_shape(lambda: model.init({"params": key}, method="touch"))
    return jax.tree.map(
        names,
        boxes.get("params", {}),
        is_leaf=lambda node: isinstance(node, boxed),
    )


def make(model: Any, objective: Any) -> Program:
    """Binds a model and an objective into pure functions; nothing is compiled yet."""

    def init(key: Array) -> PyTree:
        return nn.meta.unbox(
            model.init({"params": key}, method="touch").get("params", {})
        )

    def start(rows: int) -> PyTree:
        return model.apply({}, rows, method="make_carry")

    def metrics_on(params: PyTree, rows: Rows) -> tuple[dict, PyTree]:
        rows = passes.referred(model, objective, params, rows)
        return apply(model, params, rows, lambda m, b: objective.metrics(m, b))

    def by_row_on(params: PyTree, rows: Rows) -> tuple[passes.ByRow, PyTree]:
        return passes.by_row(functools.partial(metrics_on, params), rows)

    def predict_on(params: PyTree, rows: Rows) -> tuple[tuple, PyTree]:
        return apply(model, params, rows, lambda m, b: (b, objective.predict(m, b)))

    def metrics(params: PyTree, batch: Batch) -> dict:
        return metrics_on(params, Rows(batch, {}))[0]

    def by_row(params: PyTree, batch: Batch) -> passes.ByRow:
        return by_row_on(params, Rows(batch, {}))[0]

    def predict(params: PyTree, batch: Batch) -> tuple:
        return predict_on(params, Rows(batch, {}))[0]

    def score(params: PyTree, batch: Batch) -> tuple:
        return apply(
            model, params, Rows(batch, {}), lambda m, b: objective.score(m, b)
        )[0]

    def embed(params: PyTree, ids: Array) -> Array:
        return model.apply(
            {"params": params}, ids, method=lambda m, i: objective.embed(m, i)
        )

    continued = Continued(start, metrics_on, by_row_on, predict_on)
    return Program(model, init, metrics, by_row, predict, score, continued, embed)


def share_of(length: int) -> Callable[[Batch], Array]:
    """Returns the function of a batch: the tokens of its longest row over `length`."""

    def share(batch: Batch) -> Array:
        return jnp.sum(batch["segment_ids"] != 0, axis=1).max() / length

    return share


def make_training(
    criterion: Criterion,
    optimizer: Optimizer,
    schedule: Callable[[Array], Array],
    *,
    seed: int,
    grad_accum: int,
    gradient: Update,
    rows: int = 0,
    pace: Callable[[Batch], Array] | None = None,
    halt: bool = True,
    trains: Callable[[str], bool] = lambda path: True,
) -> Training:
    """Binds a loss and an optimiser into the update of a state.

    An update first totals each term's count over the whole batch, then adds up over
    micro-batches the gradient of the sum over terms of sum / total; so micro-batches
    of uneven counts, and any split over devices, average as the full batch does.

    An update whose loss or gradient is not finite changes nothing but `step`; with
    `halt`, nor does any after it, until the host has seen it.

    Args:
      gradient: how the gradient is made, of `lm/updates`.
      rows: of the state that the model carries from one batch to the next, one for
        each row of the batch; 0: it carries none.
      pace: the factor of the learning rate for a batch; None is 1.
      trains: as in `Program`; the optimiser is for these parameters alone.

    Raises:
      ConfigError: a pace for an optimiser whose updates it cannot scale.
    """
    if pace is not None and not optimizer.linear:
        found = "'drawn' with optim.max_norm or a schedule-free optimiser"
        expected = "an optimiser whose updates the length of a window can scale"
        raise ConfigError("data.windows", found, expected)

    def start(params: PyTree) -> State:
        frozen = trees.select(params, lambda path: not trains(path))
        params = trees.select(params, trains) | criterion.start(jax.random.key(seed))
        carried = criterion.model.apply({}, rows, method="make_carry") if rows else {}
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            carried=carried,
            averaged=jax.tree.map(jnp.copy, params) if optimizer.average else {},
            average_from=jnp.int32(averaging.NEVER) if optimizer.triggered else {},
            frozen=frozen,
        )

    def loss(
        still: tuple, params: PyTree, rows: Rows, totals: dict, key: Array
    ) -> tuple:
        frozen, teacher = still
        params = trees.merge(frozen, params)
        rngs = {"dropout": key, "sample": jax.random.fold_in(key, 1)}
        terms, carried = criterion.terms(params, teacher, rows, rngs)
        means = {
            name: total / jnp.maximum(totals[name], 1.0)
            for name, (total, _) in terms.items()
        }
        return criterion.total(means), (means, carried)

    def shared(state: State, batch: Batch) -> tuple[Rows, dict, Array]:
        """Returns the rows, the counts and the key, equal for all micro-batches."""
        # rbg bits cost a fraction of threefry's; the step alone makes them its own.
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        return Rows(batch, state.carried), criterion.counts(batch), key

    def still(state: State) -> tuple[PyTree, PyTree]:
        return state.frozen, state.teacher

    def differentiate(state: State, batch: Batch) -> tuple:
        rows, totals, key = shared(state, batch)
        of_trained = functools.partial(loss, still(state))
        value, (means, carried), grads = gradient(
            of_trained, state.params, rows, totals, key, grad_accum
        )
        return value, means, totals, carried, grads

    def update(state: State, batch: Batch) -> tuple[State, dict]:
        value, means, totals, carried, grads = differentiate(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        factor = 1.0 if pace is None else pace(batch)
        if pace is not None:
            updates = jax.tree.map(lambda change: factor * change, updates)
        params = optax.apply_updates(state.params, updates)
        norm = opt_state.gradient_norm
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        if halt:
            sound &= jnp.isfinite(state.opt_state.gradient_norm)
        averaged = state.averaged
        if optimizer.average:
            begins = state.average_from
            averaged = optimizer.average(params, opt_state, averaged, begins)
        params, opt_state, carried, averaged = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (params, opt_state, carried, averaged),
            (state.params, state.opt_state, state.carried, state.averaged),
        )
        if halt:
            opt_state = opt_state._replace(gradient_norm=norm)
        measurements = {
            "train/loss": value,
            **{f"train/{name}_loss": mean for name, mean in means.items()},
            **{f"train/{name}_count": count for name, count in totals.items()},
            "optim/applied": sound.astype(jnp.float32),
            "optim/lr": factor * schedule(state.opt_state.count),
            "optim/gradient_norm": norm,
            "optim/parameter_norm": global_norm(params),
            "optim/update_norm": global_norm(updates),
        }
        parts = params, opt_state, carried, averaged, state.average_from
        new = State(state.step + 1, *parts, *still(state))
        return new, measurements

    return Training(
        start,
        update,
        lambda state, batch: loss(still(state), state.params, *shared(state, batch))[0],
        lambda state, batch: differentiate(state, batch)[-1],
        teacher=criterion.params,
    )
