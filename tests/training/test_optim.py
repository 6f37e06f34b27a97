"""lm.training.optim: optimisers against optax on an unstacked tree; rules."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lm import trees
from lm.config.resolve import to_steps
from lm.errors import ConfigError
from lm.training import optim
from lm.training.optim import Optim

LAYERS, STEPS = 2, 3
SHAPES = {
    "embed/token/embedding": (10, 8),
    "embed/position/embedding": (6, 8),
    "layers/attention/query/kernel": (LAYERS, 8, 2, 5),
    "layers/attention/query/bias": (LAYERS, 2, 5),
    "layers/attention/output/kernel": (LAYERS, 2, 5, 8),
    "layers/mlp/up/kernel": (LAYERS, 8, 12),
    "layers/mlp_norm/scale": (LAYERS, 8),
    "heads/bias": (10,),
}
MULTIPLIERS = (("layers/0/.*", 0.5), ("layers/1/mlp/.*", 2.0), ("embed/token/.*", 0.1))
FREEZE = ("embed/position/.*", "layers/1/attention/.*")


def unstack(flat):
    """One leaf per layer, in numpy, the layer's number after "layers"."""
    flat, out = jax.tree.map(np.asarray, flat), {}
    for path, leaf in flat.items():
        head, _, tail = path.partition("layers/")
        if path.startswith("layers/"):
            out |= {f"{head}layers/{i}/{tail}": leaf[i] for i in range(LAYERS)}
        else:
            out[path] = leaf
    return out


def draw(seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def run_ours(settings, steps=STEPS, schedule=None):
    """Parameters by unstacked name after some updates, and the last state."""
    params = trees.nest(draw(0))
    tx = optim.make(settings, params, schedule or rising)
    update, state = jax.jit(tx.update), jax.jit(tx.init)(params)
    for i in range(steps):
        change, state = update(trees.nest(draw(i + 1)), state, params)
        params = jax.tree.map(lambda p, u: p + np.asarray(u), params, change)
    return unstack(trees.flatten(params)), state


def rising(step):
    return 0.01 * (1.0 + step)


def decays(name):
    """The default rules, written out another way."""
    return name.endswith(("kernel", "embedding"))


def muon_axes(params):
    axes = optax.contrib.MuonDimensionNumbers
    table = {"query/kernel": axes(0, (1, 2)), "output/kernel": axes((0, 1), 2)}
    table["up/kernel"] = axes(0, 1)
    ends = {name: "/".join(name.split("/")[-2:]) for name in params}
    return {name: table.get(end) for name, end in ends.items()}


# What optax is called with, and whether it decays the weights by itself.
REFERENCE = {
    "adam": (optax.adam, {}, False),
    "adamw": (optax.adamw, {"b2": 0.98}, True),
    "adafactor": (optax.adafactor, {"min_dim_size_to_factor": 2}, False),
    "lamb": (optax.lamb, {}, True),
    "lion": (optax.lion, {}, True),
    "muon": (optax.contrib.muon, {"consistent_rms": 0.2}, False),
    "prodigy": (optax.contrib.prodigy, {}, False),
    "rmsprop": (optax.rmsprop, {"momentum": 0.9}, False),
    "sgd": (optax.sgd, {"momentum": 0.9}, False),
}


def run_optax(name, *, weight_decay, clip, multipliers, freeze):
    """The same in plain optax on leaves that were never stacked."""
    build, options, own = REFERENCE[name]
    params = unstack(draw(0))
    live = [k for k in params if not any(re.fullmatch(f, k) for f in freeze)]
    options = dict(options)
    if own:
        options |= {"weight_decay": weight_decay, "mask": {k: decays(k) for k in live}}
    if name == "muon":
        options["muon_weight_dimension_numbers"] = muon_axes(live)
    tx = optax.chain(optax.clip_by_global_norm(clip), build(rising, **options))
    state = tx.init({k: params[k] for k in live})
    update = jax.jit(tx.update)
    for i in range(STEPS):
        grads = unstack(draw(i + 1))
        change, state = update(
            {k: grads[k] for k in live}, state, {k: params[k] for k in live}
        )
        for k in live:
            step = np.array(change[k])
            if not own and decays(k):
                step -= rising(i) * weight_decay * params[k]
            factors = (f for pattern, f in multipliers if re.fullmatch(pattern, k))
            params[k] = params[k] + step * np.float32(next(factors, 1.0))
    return params


FAST = ("adamw", "lamb", "adafactor", "lion", "sgd", "muon")
CASES = [
    pytest.param(name, rules, marks=() if rules and name in FAST else pytest.mark.slow)
    for name in REFERENCE
    for rules in (True, False)
]


@pytest.mark.parametrize("name, rules", CASES)
def test_equals_optax_on_one_leaf_per_layer(name, rules):
    fields = {
        "weight_decay": 0.1,
        "clip": 2.0,
        "multipliers": MULTIPLIERS if rules else (),
        "freeze": FREEZE if rules else (),
    }
    if rules and name == "prodigy":
        # It estimates one number over all parameters: half a frozen stack counts.
        fields["freeze"] = FREEZE[:1]
    ours, _ = run_ours(Optim(name=name, options=REFERENCE[name][1], **fields))
    theirs = run_optax(name, **fields)
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        np.testing.assert_allclose(
            ours[path], expected, rtol=2e-5, atol=2e-6, err_msg=path
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "adafactor", "muon"])
def test_stacked_leaves_would_give_something_else(name):
    """The test above can fail: these optimisers look at a leaf as a whole."""
    build, options, _ = REFERENCE[name]
    params, grads = draw(0), draw(1)
    tx = build(0.01, **options)
    change, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    stacked = unstack(optax.apply_updates(params, change))
    ours, _ = run_ours(
        Optim(name=name, options=options, weight_decay=0, clip=0), steps=1
    )
    gap = max(float(jnp.abs(ours[k] - stacked[k]).max()) for k in ours)
    assert gap > 1e-4


def resolvable():
    """Every function of optax that takes a learning rate."""
    with pytest.raises(ConfigError) as error:
        optim._resolve("?")
    return error.value.expected.partition(": ")[2].split(", ")


@pytest.mark.slow
def test_every_optimizer_of_optax_is_exact_per_layer_or_refused():
    ran, refused = [], []
    shapes = trees.nest(draw(0))
    for name in resolvable():
        try:
            settings = Optim(name=name, weight_decay=0, clip=0)
            optim.make(settings, shapes, rising)
        except ConfigError:
            refused.append(name)
            continue
        if name == "noisy_sgd":  # draws other noise for other shapes
            continue
        ours, _ = run_ours(settings)
        build = getattr(optax, name, None) or getattr(optax.contrib, name)
        off = {"weight_decay": 0.0}
        has = "weight_decay" in build.__code__.co_varnames
        options = off if has else {}
        if name == "muon":
            options["muon_weight_dimension_numbers"] = muon_axes
        tx, params = build(rising, **options), unstack(draw(0))
        state, update = tx.init(params), jax.jit(tx.update)
        for i in range(STEPS):
            change, state = update(unstack(draw(i + 1)), state, params)
            params = optax.apply_updates(params, change)
        for path, expected in params.items():
            np.testing.assert_allclose(
                ours[path], expected, rtol=1e-4, atol=1e-5, err_msg=f"{name} {path}"
            )
        ran.append(name)
    assert {"adamw", "lars", "novograd", "dowg", "galore", "dadapt_adamw"} <= set(ran)
    assert {"lbfgs", "sm3", "momo"} <= set(refused)


def test_muon_makes_one_orthogonal_matrix_of_all_heads():
    still = Optim(name="muon", weight_decay=0, clip=0)
    before = unstack(draw(0))
    after, state = run_ours(still, steps=1, schedule=lambda step: 1.0)
    for name, matrix in {
        "layers/1/attention/query/kernel": (8, 10),
        "layers/1/attention/output/kernel": (10, 8),
        "layers/0/mlp/up/kernel": (8, 12),
    }.items():
        scale = max(1, matrix[1] / matrix[0]) ** 0.5
        step = np.asarray(after[name] - before[name]).reshape(matrix) / scale
        values = np.linalg.svd(step, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3, (name, values)
    moments = [p for p in trees.flatten(state) if "/muon/" in p and "/mu/" in p]
    assert sorted(p.partition("layers/attention")[2] or "mlp" for p in moments) == [
        "/output/kernel",
        "/query/kernel",
        "mlp",
    ]


def test_frozen_parameters_stay_have_no_state_and_count_in_no_norm():
    frozen = Optim(name="adamw", freeze=("layers/.*", "embed/token/.*"), clip=1.0)
    start = unstack(draw(0))
    ours, state = run_ours(frozen)
    for path, value in ours.items():
        same = np.array_equal(value, start[path])
        assert same == path.startswith(("layers/", "embed/token/")), path
    assert not [p for p in trees.flatten(state) if "layers/" in p or "embed/token" in p]
    last = draw(STEPS)
    squares = sum(
        float((x**2).sum())
        for k, x in last.items()
        if not k.startswith(("layers/", "embed/token/"))
    )
    np.testing.assert_allclose(state.gradient_norm, squares**0.5, rtol=1e-6)
    assert state.count == STEPS


def test_a_gradient_that_is_not_finite_stays_in_a_frozen_layer():
    params, grads = trees.nest(draw(0)), draw(1)
    bad = "layers/attention/query/kernel"
    grads[bad][1] = np.nan
    tx = optim.make(Optim(name="sgd", freeze=("layers/1/.*",)), params, rising)
    change, state = jax.jit(tx.update)(trees.nest(grads), tx.init(params), params)
    for path, leaf in trees.flatten(change).items():
        assert np.isfinite(leaf).all(), path
        if path.startswith("layers/"):
            assert not np.any(leaf[1]) and np.all(leaf[0] != 0)
    assert np.isfinite(state.gradient_norm)


def test_clipping_leaves_small_gradients_alone_and_zero_turns_it_off():
    def weights(clip):
        return run_ours(Optim(name="sgd", clip=clip, weight_decay=0), steps=1)[0]

    big, off, tight = weights(1e6), weights(0.0), weights(1.0)
    moved = [
        np.concatenate([(w[k] - x).ravel() for k, x in unstack(draw(0)).items()])
        for w in (big, off, tight)
    ]
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_allclose(np.linalg.norm(moved[2]), rising(0), rtol=1e-4)


def test_the_state_is_stacked_whatever_the_optimizer():
    for name in ("adamw", "lamb", "adafactor"):
        params = trees.nest(draw(0))
        tx = optim.make(Optim(name=name), params, rising)
        state = jax.eval_shape(tx.init, params)
        leaves = trees.flatten(state.groups["layers"])
        assert leaves and all(leaf.shape[0] == LAYERS for leaf in leaves.values())


def test_stacks_of_different_depth_live_together():
    params = {
        "encoder": {"layers": {"mlp": {"kernel": jnp.ones((2, 4, 4))}}},
        "decoder": {"layers": {"mlp": {"kernel": jnp.ones((3, 4, 4))}}},
    }
    tx = optim.make(Optim(name="sgd", freeze=("decoder/layers/2/.*",)), params, rising)
    change, state = tx.update(params, tx.init(params), params)
    assert set(state.groups) == {"encoder_layers", "decoder_layers"}
    kernel = change["decoder"]["layers"]["mlp"]["kernel"]
    assert np.all(kernel[:2] != 0) and not np.any(kernel[2])


# Schedules -----------------------------------------------------------------------


def rates(steps=100, **fields):
    steps_of = partial(to_steps, batch_size=2, seq_len=8, total_steps=steps)
    fn = jax.jit(optim.schedule(Optim(lr=2.0, **fields), steps_of))
    return lambda step: float(fn(step))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"schedule": "constant"}, {0: 2.0, 99: 2.0}),
        ({"schedule": "constant", "warmup": 4}, {0: 0.5, 1: 1.0, 3: 2.0, 4: 2.0}),
        (
            {"schedule": "linear", "warmup": "20%"},
            {0: 0.1, 19: 2.0, 20: 2.0, 60: 1.0, 99: 0.025, 100: 0.0, 120: 0.0},
        ),
        ({"schedule": "linear", "end_lr": 0.1}, {0: 2.0, 50: 1.1, 100: 0.2}),
        (
            {"schedule": "cosine", "warmup": 20, "end_lr": 0.5},
            {20: 2.0, 40: 1.5 + 0.5 * 2**-0.5, 60: 1.5, 100: 1.0},
        ),
        (
            {"schedule": "rsqrt", "warmup": "20 examples"},
            {0: 0.2, 9: 2.0, 10: 2 * (10 / 11) ** 0.5, 39: 1.0},
        ),
        (
            {"schedule": "wsd", "warmup": 10, "decay": "20%", "end_lr": 0.1},
            {4: 1.0, 9: 2.0, 50: 2.0, 80: 2.0, 90: 1.1, 100: 0.2},
        ),
    ],
)
def test_schedules(fields, expected):
    rate = rates(**fields)
    for step, value in expected.items():
        assert rate(step) == pytest.approx(value, abs=1e-6), step


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup": 101}, r"optim.warmup: found 101 steps"),
        ({"schedule": "wsd", "warmup": 95}, "and 10 of decay"),
        ({"schedule": "constant", "end_lr": 0.1}, "optim.end_lr"),
        ({"warmup": "3 epochs"}, "optim.warmup"),
    ],
)
def test_schedules_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        rates(**fields)


# Refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "adamv"}, "did you mean adam"),
        ({"name": "scale_by_adam"}, "an optimiser of optax: .*adamw"),
        ({"name": "schedule_free"}, "wraps another optimiser"),
        ({"name": "lbfgs"}, "value_fn"),
        ({"options": {"beta1": 0.9}}, r"optim.options.beta1.*b1, b2, eps"),
        ({"options": {"weight_decay": 0.1}}, "Fix: set optim.weight_decay"),
        ({"options": {"b1": "much"}}, "'b1': 'much'"),
        ({"freeze": ("embed/tokn/.*",)}, r"optim.freeze.*near it.*embed/token"),
        ({"freeze": ("layers/attention/.*",)}, "layers/0/attention"),
        ({"freeze": (".*",)}, "every parameter frozen"),
        ({"multipliers": (("x", 2.0),)}, "optim.multipliers"),
        (
            {"decay_mask": ((".*bias|embed.*|.*kernel", 0.0),)},
            "layers/0/mlp_norm/scale.*no pattern",
        ),
        (
            {
                "name": "lamb",
                "decay_mask": (("layers/0/.*", 0), (".*", 1)),
            },
            "trust ratio",
        ),
    ],
)
def test_mistakes_are_config_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        optim.make(Optim(**fields), trees.nest(draw(0)), rising)


def test_muon_without_a_matrix_is_refused():
    with pytest.raises(ConfigError, match="kernel"):
        params = {"embed": {"embedding": jnp.ones((4, 4))}}
        optim.make(Optim(name="muon"), params, rising)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_a_schedule_free_optimiser_is_that_of_optax(name):
    """Its steps and its average, on a stack of two layers and a leaf of no stack."""
    rng = np.random.default_rng(0)
    shapes = {"layers": {"kernel": (2, 3, 4)}, "embedding": (5, 3)}
    tree = lambda: jax.tree.map(  # noqa: E731
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    settings = Optim(name=name, lr=0.1, schedule="constant", weight_decay=0.0, clip=0.0)
    ours, theirs = tree(), None
    theirs = ours
    rate = lambda step: 0.05 * (1 + jnp.float32(step))  # noqa: E731
    optimizer = optim.make(settings, ours, rate)
    reference = getattr(optax.contrib, name)(rate)
    state, other = optimizer.init(ours), reference.init(theirs)
    for _ in range(4):
        grads = tree()
        change, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, change)
        change, other = reference.update(grads, other, theirs)
        theirs = optax.apply_updates(theirs, change)
        for path, x in trees.flatten(ours).items():
            np.testing.assert_allclose(x, trees.flatten(theirs)[path], atol=1e-6)
    found = trees.flatten(optimizer.average(ours, state, ours, {}))
    expected = optax.contrib.schedule_free_eval_params(other, theirs)
    for path, x in trees.flatten(expected).items():
        np.testing.assert_allclose(found[path], x, atol=1e-5)
        assert np.abs(found[path] - trees.flatten(ours)[path]).max() > 1e-3


def test_a_schedule_free_optimiser_leaves_what_is_frozen_to_the_bit():
    params = {"layers": {"kernel": jnp.full((2, 3), 0.1)}, "embedding": jnp.ones(3) / 3}
    settings = Optim(
        name="schedule_free_sgd",
        lr=0.1,
        schedule="constant",
        freeze=("embedding", "layers/0/.*"),
    )
    optimizer = optim.make(settings, params, lambda step: jnp.float32(0.1))
    state, now = optimizer.init(params), params
    for _ in range(5):
        change, state = optimizer.update(jax.tree.map(jnp.ones_like, now), state, now)
        now = optax.apply_updates(now, change)
    average = optimizer.average(now, state, now, {})
    for tree in (now, average):
        np.testing.assert_array_equal(tree["embedding"], params["embedding"])
        np.testing.assert_array_equal(
            tree["layers"]["kernel"][0], params["layers"]["kernel"][0]
        )
        assert (tree["layers"]["kernel"][1] != params["layers"]["kernel"][1]).all()


def test_the_weights_of_an_output_are_scaled_down_to_the_norm():
    """Of the outputs whose weights are longer; of one layer and not of the other."""
    free = Optim(name="sgd", lr=1.0, clip=0.0, weight_decay=0.0)
    table = (("layers/1/mlp/up/kernel", 2.0),)
    bound = Optim(name="sgd", lr=1.0, clip=0.0, weight_decay=0.0, max_norm=table)
    (expected, _), (found, _) = (run_ours(each, steps=1) for each in (free, bound))
    name = "layers/1/mlp/up/kernel"
    norms = np.linalg.norm(expected[name], axis=0)
    assert norms.min() < norms.max() and norms.max() > 2.0
    expected[name] = expected[name] * np.minimum(1.0, 2.0 / norms)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_norm": (("nothing", 1.0),)}, "matches no parameter"),
        ({"max_norm": ((".*query/kernel", 1.0),)}, "of 3 axes"),
        (
            {"max_norm": ((".*up/kernel", 1.0),), "name": "schedule_free_sgd"},
            "schedule_free_sgd",
        ),
    ],
)
def test_a_norm_that_has_no_weights_is_refused(changes, expected):
    with pytest.raises(ConfigError, match=rf"optim.max_norm.*{expected}"):
        run_ours(Optim(**changes), steps=0)
