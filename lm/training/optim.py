"""The optimiser: any of optax by its name, with rules per parameter.

What one update does, in this order:

1. Gradients of frozen parameters are dropped: they count in no norm, have no state,
   and their parameters get no decay.
2. The rest is clipped to the global norm `clip`.
3. The optax optimiser runs with the learning rate of the schedule and sees one leaf
   per layer (see `_per_layer`).
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
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lm import trees
from lm.config.resolve import Duration
from lm.errors import ConfigError

Tree = Any
Schedule = Callable[[Any], jax.Array]

BOUNDS = {
    "lr": "(0, inf)",
    "end_lr": "[0, 1]",
    "weight_decay": "[0, inf)",
    "clip": "[0, inf)",
    "decay_mask": "[0, inf)",
    "multipliers": "(0, inf)",
}
CHANGEABLE = ()

# Weight decay is a part of these algorithms: it enters the trust ratio.
_OWN_DECAY = {"lamb": "mask", "lars": "weight_decay_mask"}
# These estimate one number over all parameters, or draw noise, and act elementwise
# otherwise: they see the stacked leaves at once.
_WHOLE_TREE = {"dadapt_adamw", "dog", "dowg", "noisy_sgd", "prodigy"}
_UNSUPPORTED = {
    "dpsgd": "needs the gradient of every example",
    "schedule_free": "evaluates at other parameters than it trains",
    "schedule_free_adamw": "evaluates at other parameters than it trains",
    "schedule_free_sgd": "evaluates at other parameters than it trains",
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
      schedule: its course after the warmup, see `schedule`.
      warmup: how long it rises from 0 to `lr`.
      decay: for "wsd" alone, how long it falls at the end.
      end_lr: the learning rate at the end as a fraction of `lr`.
      weight_decay: decoupled decay per step and unit of learning rate.
      decay_mask: (pattern, factor of `weight_decay`); every parameter must match one.
      clip: largest global norm of the gradient; 0 clips nothing.
      multipliers: (pattern, factor of the learning rate); 1 where none matches.
      freeze: patterns of parameters that are not trained.
      options: the optax function's own keywords, {"b2": 0.98}.
    """

    name: str = "adamw"
    lr: float = 1e-4
    schedule: Literal["constant", "linear", "cosine", "rsqrt", "wsd"] = "linear"
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
    options: dict = field(default_factory=dict)


class OptimState(NamedTuple):
    """What an update needs of those before it.

    Attributes:
      count: the updates so far.
      gradient_norm: of the last gradients, frozen ones left out, before clipping.
      groups: the optax state of each stack of layers, and of the "rest".
    """

    count: jax.Array
    gradient_norm: jax.Array
    groups: dict[str, Any]


def schedule(optim: Optim, steps_of: Callable[..., int]) -> Schedule:
    """The learning rate as a function of the step, counted from 0.

    It rises linearly over the steps 0 to warmup - 1, so that the first step already
    learns and step warmup - 1 has `lr`. Then "constant" keeps it; "linear" and
    "cosine" fall to `end_lr` × `lr` at the end, the step after the last; "rsqrt"
    falls with the square root of the step (Raffel et al., arXiv:1910.10683, 3.1.2);
    "wsd" keeps it and falls linearly over the last `decay` (Hu et al.,
    arXiv:2404.06395, section 4).

    Args:
      steps_of: a duration of the run in steps, as `lm.config.to_steps` with the run's
        own sizes; it takes `where` and `least` too.

    Raises:
      ConfigError: the parts are longer than the run, or an end that is not reached.
    """
    kind, floor = optim.schedule, optim.end_lr
    steps = steps_of("100%")
    warmup = steps_of(optim.warmup, where="optim.warmup", least=0)
    decay = steps_of(optim.decay, where="optim.decay") if kind == "wsd" else 0
    if warmup + decay > steps:
        raise ConfigError(
            "optim.warmup",
            f"{warmup} steps of warmup" + (f" and {decay} of decay" if decay else ""),
            f"at most the {steps} steps of the run",
        )
    if floor and kind in ("constant", "rsqrt"):
        raise ConfigError(
            "optim.end_lr", f"{floor} with schedule={kind}", "0, as it has no end"
        )
    start = steps - decay if kind == "wsd" else warmup

    def learning_rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        fallen = jnp.clip((step - start) / max(steps - start, 1), 0.0, 1.0)
        match kind:
            case "constant":
                course = 1.0
            case "linear" | "wsd":
                course = 1 - (1 - floor) * fallen
            case "cosine":
                course = floor + (1 - floor) * (1 + jnp.cos(jnp.pi * fallen)) / 2
            case _:
                course = jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, warmup))
        return optim.lr * rise * course

    return learning_rate


def make(
    optim: Optim, params: Tree, schedule: Schedule
) -> optax.GradientTransformation:
    """The optimiser for parameters of these names and shapes.

    Args:
      params: nested dictionaries of arrays or `ShapeDtypeStruct`s.
      schedule: the learning rate of a step.

    Returns:
      init(params) -> `OptimState`; update(gradients, state, params) -> what is added
      to the parameters, and the new state.

    Raises:
      ConfigError: an unknown name or option, a pattern that matches nothing, a
        parameter that no pattern of `decay_mask` covers, nothing left to train.
    """
    shapes = trees.flatten(params)
    trained = _trained(optim, shapes)
    scales = _scales(optim, shapes, trained)
    decays = _decays(optim, shapes)
    inner = _inner(optim, schedule, decays, {path: shapes[path] for path in trained})
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

    return optax.GradientTransformation(init, update)


def global_norm(tree: Tree) -> jax.Array:
    """The square root of the sum of all squares, in float32."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in leaves))


def _leaf_values(
    table: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, float | bool | np.ndarray]:
    """The values of all layers of each leaf: one number, or an array (L, 1, ...)."""
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
    """True, or a boolean per layer, for every leaf of which something is trained."""
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
    """What each update is multiplied by; 0 in frozen layers."""
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
    """The factor of the weight decay of each leaf."""
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
    schedule: Schedule,
    decays: Mapping[str, Any],
    live: dict[str, Any],
) -> optax.GradientTransformation:
    """The optax optimiser on a flat dictionary of leaves, tried on their shapes."""
    build = _resolve(optim.name)
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
        if not any(map(_muon_axes, live, live.values())):
            raise ConfigError(
                "optim.name", "muon, and no kernel under layers/", "such kernels"
            )
        options["muon_weight_dimension_numbers"] = lambda tree: trees.map_with_path(
            lambda path, leaf: _muon_axes(path, leaf, stacked=False), tree
        )
    try:
        inner = _per_layer(build(**options), whole=optim.name in _WHOLE_TREE)
        state = jax.eval_shape(inner.init, live)
        jax.eval_shape(inner.update, live, state, live)
    except Exception as error:  # optax states what it refuses in many kinds of error
        raise ConfigError(
            "optim",
            f"{optim.name} with options {optim.options}, which optax refuses: {error}",
            "an optimiser that needs gradients, parameters and a schedule alone",
        ) from error
    return inner


def _per_layer(
    inner: optax.GradientTransformation, *, whole: bool
) -> optax.GradientTransformation:
    """`inner` on flat leaves, so that it sees every layer of a stack as a leaf.

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


def _muon_axes(
    path: str, leaf: Any, *, stacked: bool = True
) -> optax.contrib.MuonDimensionNumbers | None:
    """How Muon sees a leaf as a matrix; None for a leaf that Adam updates.

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


def _resolve(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function of optax, or else of optax.contrib, that makes an optimiser."""
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
