"""The optimiser: any of optax by its name, with rules per parameter.

What one update does, in this order:

1. Gradients of frozen parameters are dropped: they count in no norm, have no state,
   and their parameters get no decay.
2. The rest is clipped to the global norm `clip`.
3. The optax optimiser runs with the learning rate of the schedule and sees one leaf
   per layer (see `per_layer`).
4. Decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101) is subtracted:
   learning rate × `weight_decay` × the factor in `decay_mask` × parameter. It is the
   same for every optimiser, and the optimiser's own decay is off. LAMB and LARS are
   the exception: theirs is part of the trust ratio, so it is used and ours is off.
5. The update, decay included, is multiplied by the parameter's multiplier.

Patterns match the whole of a parameter's name; a layer's number is part of it
("layers/3/attention/query/kernel"). The first pattern that matches decides.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lm import trees
from lm.config.resolve import Duration
from lm.errors import ConfigError
from lm.training import averaging, schedules
from lm.training.maxnorm import bounded
from lm.training.stacks import muon_axes, per_layer

Tree = Any
Schedule = Callable[[Any], jax.Array]

BOUNDS = {
    "lr": "(0, inf)",
    "end_lr": "[0, 1]",
    "weight_decay": "[0, inf)",
    "clip": "[0, inf)",
    "ema": "(0, 1)",
    "decay_mask": "[0, inf)",
    "multipliers": "(0, inf)",
    "max_norm": "(0, inf)",
    "average_patience": "[1, 1000000]",
}
CHANGEABLE = ("weights",)
WORDS = {"schedule": "training.schedules:*"}

# Weight decay is a part of these algorithms: it enters the trust ratio.
_OWN_DECAY = {"lamb": "mask", "lars": "weight_decay_mask"}
# These estimate one number over all parameters, or draw noise, and act elementwise
# otherwise: they see the stacked leaves at once.
_WHOLE_TREE = {"dadapt_adamw", "dog", "dowg", "noisy_sgd", "prodigy"}
_UNSUPPORTED = {
    "dpsgd": "needs the gradient of every example",
    "schedule_free": "wraps another optimiser",
}
# Keywords of optax that fields of ours, or the rules above, decide.
_RESERVED = {
    "learning_rate": "optim.lr",
    "adam_learning_rate": "optim.multipliers",
    "weight_decay": "optim.weight_decay",
    "weight_decay_rate": "optim.weight_decay",
    "adam_weight_decay": "optim.weight_decay",
    "mask": "optim.decay_mask",
    "weight_decay_mask": "optim.decay_mask",
}


@dataclass(frozen=True)
class Optim:
    """The section `optim` of a config.

    Attributes:
      name: a function of `optax` or `optax.contrib` ("adamw", "lamb", "muon").
      lr: the peak learning rate.
      schedule: its course after the warmup, a function of `lm/training/schedules.py`.
      warmup: how long it rises from 0 to `lr`.
      decay: for "wsd" alone, how long it falls at the end.
      end_lr: the learning rate at the end as a fraction of `lr`.
      weight_decay: decoupled decay per step and unit of learning rate.
      decay_mask: (pattern, factor of `weight_decay`); every parameter must match one.
      clip: largest global norm of the gradient; 0 clips nothing.
      multipliers: (pattern, factor of the learning rate); 1 where none matches.
      freeze: patterns of parameters that are not trained; (r"(?!heads/|.*bias$).*",)
        leaves heads and biases alone (BitFit; Ben Zaken et al. 2022).
      max_norm: (pattern, the largest norm of the weights of one output of a kernel), to
        which they are scaled down after each update; see lm/training/maxnorm.py.
      options: the optax function's own keywords, {"b2": 0.98}.
      ema: decay of an exponential moving average of the weights, such as 0.9999; None
        keeps none. Early on the decay is less, (1 + t) / (10 + t) after t updates.
      average_from: when a plain average of the weights after each update begins, with a
        constant learning rate (Polyak and Juditsky 1992); before, averaged are the
        trained.
      average_when: the metric of an evaluation, such as "valid/loss", of which less is
        better: the plain average begins where this stops improving, when its value is
        worse than the best of those before the last `average_patience` (NT-ASGD, Merity
        et al. 2018, Algorithm 1).
      average_patience: a number of evaluations.
      weights: those that evaluations measure, "averaged" or "trained". Where there is
        no average (by `ema` or a schedule-free optimiser), averaged are the trained.
    """

    name: str = "adamw"
    lr: float = 1e-4
    schedule: str = "linear"
    warmup: Duration = 0
    decay: Duration = "10%"
    end_lr: float = 0.0
    weight_decay: float = 0.01
    decay_mask: tuple[tuple[str, float], ...] = (
        (r"(.*/)?bias", 0.0),
        (r".*norm.*/scale", 0.0),
        (r"(.*/)?(kernel|embedding)", 1.0),
    )
    clip: float = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    max_norm: tuple[tuple[str, float], ...] = ()
    options: dict = field(default_factory=dict)
    ema: float | None = None
    average_from: Duration | None = None
    average_when: str | None = None
    average_patience: int = 5
    weights: Literal["averaged", "trained"] = "averaged"


class OptimState(NamedTuple):
    """State carried from one update to the next.

    Attributes:
      count: the updates so far.
      gradient_norm: of the last gradients, frozen ones left out, before clipping.
      groups: the optax state of each stack of layers, and of the "rest".
    """

    # Checkpoints hold it by this name, though a tuple has a method that is called so.
    count: jax.Array  # type: ignore[assignment]
    gradient_norm: jax.Array
    groups: dict[str, Any]


class Optimizer(NamedTuple):
    """The optimiser of a run.

    Attributes:
      init: parameters -> `OptimState`.
      update: (gradients, OptimState, parameters) -> what is added to the parameters,
        and the new state.
      average: (parameters, OptimState, the last average, the state's `average_from`) ->
        the average after an update; None where the run keeps none.
      triggered: whether the average begins where the state's `average_from` says.
      linear: whether an update times a factor is that of the learning rate times it.
    """

    init: Callable[[Tree], OptimState]
    update: Callable[[Tree, OptimState, Tree], tuple[Tree, OptimState]]
    average: averaging.Average | None = None
    triggered: bool = False
    linear: bool = True


def schedule(optim: Optim, steps_of: Callable[..., int]) -> Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    It rises linearly over the steps 0 to warmup - 1, so that the first step already
    learns and step warmup - 1 has `lr`. Its course from there on is a function of
    `lm/training/schedules.py`.

    Args:
      steps_of: a duration of the run in steps, as `lm.config.to_steps` with the run's
        own sizes; it takes `where` and `least` too.

    Raises:
      ConfigError: the parts are longer than the run, or an end that is not reached.
    """
    course = getattr(schedules, optim.schedule)
    asked = inspect.signature(course).parameters
    steps = steps_of("100%")
    warmup = steps_of(optim.warmup, where="optim.warmup", least=0)
    decay = steps_of(optim.decay, where="optim.decay") if "decay" in asked else 0
    if warmup + decay > steps:
        raise ConfigError(
            "optim.warmup",
            f"{warmup} steps of warmup" + (f" and {decay} of decay" if decay else ""),
            f"at most the {steps} steps of the run",
        )
    if optim.end_lr and "end" not in asked:
        found = f"{optim.end_lr} with schedule={optim.schedule}"
        raise ConfigError("optim.end_lr", found, "0, as it has no end")
    known = {"warmup": warmup, "decay": decay, "steps": steps, "end": optim.end_lr}
    given = {name: value for name, value in known.items() if name in asked}

    def learning_rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        return optim.lr * rise * course(step, **given)

    return learning_rate


def make(optim: Optim, params: Tree, schedule: Schedule) -> Optimizer:
    """Makes the optimiser for parameters of these names and shapes.

    Args:
      params: nested dictionaries of arrays or `ShapeDtypeStruct`s.
      schedule: the learning rate of a step.

    Raises:
      ConfigError: an unknown name or option, a pattern that matches nothing, a
        parameter that no pattern of `decay_mask` covers, nothing left to train.
    """
    base = _BASES.get(optim.name)
    average = averaging.chosen(optim, itself=base is not None)
    if base is not None and optim.max_norm:
        raise ConfigError("optim.max_norm", f"one with {optim.name}", "another name")
    if base is not None:
        return _schedule_free(optim, base, params, schedule)
    made = _make(optim, _resolve(optim.name), params, schedule)
    if optim.max_norm:
        shapes = trees.flatten(params)
        update = bounded(made.update, optim.max_norm, shapes)
        made = made._replace(update=update, linear=False)
    triggered = optim.average_when is not None
    return made._replace(average=average, triggered=triggered)


def _schedule_free(
    optim: Optim, base: Callable, params: Tree, schedule: Schedule
) -> Optimizer:
    """Averages the steps of `base` instead of a falling learning rate.

    `optax.contrib.schedule_free` (Defazio et al., arXiv:2405.15682) around all that an
    update does: clipping, decay and multipliers are those of any other optimiser.

    Args:
      base: the same algorithm without momentum, a function such as those of optax.
    """
    outer = inspect.signature(optax.contrib.schedule_free).parameters
    own = {n: v for n, v in optim.options.items() if n in ("b1", "weight_lr_power")}
    if not 0 < own.get("b1", outer["b1"].default) <= 1:
        raise ConfigError("optim.options.b1", repr(own["b1"]), "above 0, at most 1")
    rest = {n: v for n, v in optim.options.items() if n not in own}
    made = _make(replace(optim, options=rest), base, params, schedule)
    wrapped = optax.contrib.schedule_free(
        optax.GradientTransformation(made.init, made.update), schedule, **own
    )
    trained = _trained(optim, trees.flatten(params))

    def live(tree: Tree, otherwise: Tree) -> Tree:
        """Takes trained leaves and layers from `tree`, the others from `otherwise`."""
        return trees.map_with_path(
            lambda path, x, y: (
                x
                if trained.get(path, False) is True
                else jnp.where(trained.get(path, False), x, y)
            ),
            tree,
            otherwise,
        )

    def state_of(groups: Any) -> OptimState:
        inner = groups.base_optimizer_state
        return OptimState(inner.count, inner.gradient_norm, groups)

    def init(params: Tree) -> OptimState:
        return state_of(wrapped.init(params))

    def update(grads: Tree, state: OptimState, params: Tree) -> tuple[Tree, OptimState]:
        updates, groups = wrapped.update(grads, state.groups, params)
        # What is frozen comes through the averages changed by their rounding.
        return live(updates, jax.tree.map(jnp.zeros_like, updates)), state_of(groups)

    def average(params: Tree, state: OptimState, last: Tree, begins: Any) -> Tree:
        found = optax.contrib.schedule_free_eval_params(state.groups, params)
        return live(found, params)

    return Optimizer(init, update, average, linear=False)


def _rms(learning_rate: Schedule, b2: float = 0.999, eps: float = 1e-8) -> Any:
    """Builds Adam without momentum."""
    return optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.scale_by_learning_rate(learning_rate),
    )


def _sgd(learning_rate: Schedule) -> Any:
    return optax.sgd(learning_rate)


# Schedule-free optimisers of optax.contrib, and what they wrap.
_BASES = {"schedule_free_adamw": _rms, "schedule_free_sgd": _sgd}


def _make(optim: Optim, build: Callable, params: Tree, schedule: Schedule) -> Optimizer:
    """Makes the optimiser around the optax function `build`, without an average."""
    shapes = trees.flatten(params)
    trained = _trained(optim, shapes)
    scales = _scales(optim, shapes, trained)
    decays = _decays(optim, shapes)
    inner = _inner(
        optim, build, schedule, decays, {path: shapes[path] for path in trained}
    )
    own_decay = optim.name in _OWN_DECAY or not optim.weight_decay

    def init(params: Tree) -> OptimState:
        flat = trees.flatten(params)
        live = {path: flat[path] for path in trained}
        groups = inner.init(live)
        return OptimState(jnp.zeros((), jnp.int32), jnp.zeros(()), groups)

    def update(grads: Tree, state: OptimState, params: Tree) -> tuple[Tree, OptimState]:
        values = trees.flatten(params)
        updates = {path: jnp.zeros_like(value) for path, value in values.items()}
        flat = trees.flatten(grads)
        live = {
            path: flat[path] if keep is True else jnp.where(keep, flat[path], 0)
            for path, keep in trained.items()
        }
        norm = global_norm(live)
        if optim.clip:
            factor = optim.clip / jnp.maximum(norm, optim.clip)
            live = {path: grad * factor for path, grad in live.items()}
        live, groups = inner.update(
            live, state.groups, {path: values[path] for path in live}
        )
        learning_rate = schedule(state.count)
        for path, change in live.items():
            if not own_decay:
                rate = optim.weight_decay * decays[path]
                change = change - learning_rate * rate * values[path]
            updates[path] = change * scales[path]
        count = optax.safe_increment(state.count)
        return trees.unflatten(params, updates), OptimState(count, norm, groups)

    return Optimizer(init, update)


def global_norm(tree: Tree) -> jax.Array:
    """Computes the square root of the sum of all squares, in float32."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in leaves))


def _leaf_values(
    table: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, float | bool | np.ndarray]:
    """Gathers the values of each leaf's layers: one number, or an array (L, 1, ...)."""
    values = {}
    for path, leaf in shapes.items():
        layers = np.array([table[name] for name in trees.layer_names(path, leaf)])
        equal = (layers == layers[0]).all()
        column = layers.reshape(-1, *[1] * (len(leaf.shape) - 1))
        values[path] = layers[0].item() if equal else column
    return values


def _names(shapes: Mapping[str, Any]) -> list[str]:
    return [name for path, x in shapes.items() for name in trees.layer_names(path, x)]


def _trained(optim: Optim, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves that are trained: True, or a boolean for each layer."""
    table = trees.match(
        [(pattern, False) for pattern in optim.freeze],
        _names(shapes),
        where="optim.freeze",
        default=True,
        all_used=True,
    )
    trained = _leaf_values(table, shapes)
    kept = {path: keep for path, keep in trained.items() if keep is not False}
    if not kept:
        raise ConfigError(
            "optim.freeze", "every parameter frozen", "some parameter to train"
        )
    return kept


def _scales(
    optim: Optim, shapes: Mapping[str, Any], trained: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the factor of each leaf's update; 0 in frozen layers."""
    table = trees.match(
        optim.multipliers,
        _names(shapes),
        where="optim.multipliers",
        default=1.0,
        all_used=True,
    )
    scales = _leaf_values(table, shapes)
    # In float32, since an array of float64 would be wider than the update.
    return {path: np.float32(scales[path] * keep) for path, keep in trained.items()}


def _decays(optim: Optim, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the factor of each leaf's weight decay."""
    table = trees.match(optim.decay_mask, _names(shapes), where="optim.decay_mask")
    decays = _leaf_values(table, shapes)
    plain = all(np.ndim(decay) == 0 and decay in (0, 1) for decay in decays.values())
    if optim.name in _OWN_DECAY and not plain:
        raise ConfigError(
            "optim.decay_mask",
            f"factors besides 0 and 1, or that differ between layers, for {optim.name}",
            "0 or 1 for all layers alike: its decay is part of the trust ratio",
        )
    return decays


def _inner(
    optim: Optim,
    build: Callable[..., optax.GradientTransformation],
    schedule: Schedule,
    decays: Mapping[str, Any],
    live: dict[str, Any],
) -> optax.GradientTransformation:
    """Builds the optax optimiser of a flat dictionary of leaves; tests their shapes."""
    keywords = inspect.signature(build).parameters
    for option in optim.options:
        if option in _RESERVED or option not in keywords:
            free = [name for name in keywords if name not in _RESERVED]
            own = f"set {_RESERVED[option]}" if option in _RESERVED else None
            raise ConfigError(
                f"optim.options.{option}",
                "a name that is not for optim.options",
                f"one of the keywords of {optim.name}: {', '.join(free)}",
                own or _nearest(option, free),
            )
    options = {**optim.options, "learning_rate": schedule}
    if "weight_decay" in keywords:
        options["weight_decay"] = 0.0
    if optim.name in _OWN_DECAY:
        options["weight_decay"] = optim.weight_decay
        options[_OWN_DECAY[optim.name]] = lambda tree: trees.map_with_path(
            lambda path, _: bool(decays[path]), tree
        )
    if optim.name == "muon":
        if not any(map(muon_axes, live, live.values())):
            raise ConfigError(
                "optim.name", "muon, and no kernel under layers/", "such kernels"
            )
        options["muon_weight_dimension_numbers"] = lambda tree: trees.map_with_path(
            lambda path, leaf: muon_axes(path, leaf, stacked=False), tree
        )
    try:
        inner = per_layer(build(**options), whole=optim.name in _WHOLE_TREE)
        state = jax.eval_shape(inner.init, live)
        jax.eval_shape(inner.update, live, state, live)
    except Exception as error:  # optax states what it refuses in many kinds of error
        raise ConfigError(
            "optim",
            f"{optim.name} with options {optim.options}, which optax refuses: {error}",
            "an optimiser that needs gradients, parameters and a schedule alone",
        ) from error
    return inner


def _resolve(name: str) -> Callable[..., optax.GradientTransformation]:
    """Finds the function of optax, or else of optax.contrib, of this name."""
    known: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for module in (optax.contrib, optax):
        for key, value in vars(module).items():
            hidden = key.startswith(("_", "scale_by_")) or key in _UNSUPPORTED
            if hidden or not inspect.isfunction(value):
                continue
            if "learning_rate" in inspect.signature(value).parameters:
                known[key] = value
    if name in _UNSUPPORTED:
        raise ConfigError(
            "optim.name", f"{name}, which {_UNSUPPORTED[name]}", "another optimiser"
        )
    if name not in known:
        raise ConfigError(
            "optim.name",
            repr(name),
            f"an optimiser of optax: {', '.join(sorted(known))}",
            _nearest(name, known),
        )
    return known[name]


def _nearest(word: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else None
