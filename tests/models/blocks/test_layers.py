"""What modules say of their axes, and where activations are laid out."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lm import trees
from lm.errors import ConfigError
from lm.models.base import Compute
from lm.models.blocks.layers import constrain
from lm.models.transformer import Model
from lm.objectives import mlm
from lm.training import step
from tests import tiny

RULES = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
)
HEADS = mlm.Objective(next="nsp").heads()
TINY = {
    "vocab_size": 32,
    "num_layers": 2,
    "d_model": 8,
    "num_heads": 2,
    "d_ff": 16,
    "max_len": 8,
    "heads": HEADS,
}


@pytest.fixture(scope="module")
def mesh():
    names = ("data", "fsdp", "tensor")
    return jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)


def batch(rows, length):
    ones = jnp.ones((rows, length), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(length), (rows, length))
    tokens = jax.random.randint(jax.random.key(3), (rows, length), 0, 32)
    return {
        "inputs": tokens,
        "positions": places,
        "segment_ids": ones,
        "token_types": ones - 1,
    }


def laid_out(x, mesh, *axes, rules=RULES):
    with jax.set_mesh(mesh):
        spec = jax.jit(lambda x: constrain(x, rules, *axes))(x).sharding.spec
    return tuple(spec) + (None,) * (x.ndim - len(spec))


def test_constrain_lays_out_by_the_rules(mesh):
    spec = laid_out(jnp.zeros((8, 3, 6)), mesh, "batch", "length", "mlp")
    assert spec == (("data", "fsdp"), None, "tensor")


def test_the_first_rule_of_a_name_counts(mesh):
    rules = (*RULES, ("mlp", "data"))
    assert laid_out(jnp.zeros((3, 8)), mesh, None, "mlp", rules=rules)[1] == "tensor"


def test_constrain_keeps_whole_what_does_not_divide(mesh):
    assert laid_out(jnp.zeros((6, 3)), mesh, "batch", "mlp") == (None, None)
    assert laid_out(jnp.zeros((8, 3)), mesh, "batch", "mlp")[0] == ("data", "fsdp")


def test_constrain_does_nothing_without_a_mesh_or_rules(mesh):
    x = jnp.zeros((8, 4))
    assert constrain(x, RULES, "batch", "mlp") is x
    with jax.set_mesh(mesh):
        assert constrain(x, (), "batch", "mlp") is x


def test_an_axis_without_a_rule_is_an_error(mesh):
    with jax.set_mesh(mesh), pytest.raises(KeyError, match="embed"):
        constrain(jnp.zeros((8,)), RULES, "embed")


def test_constraints_change_no_value(mesh):
    plain = Model(**TINY)
    params = tiny.new(plain)
    rows = batch(8, 6)
    ruled = plain.clone(compute=Compute(rules=RULES))

    def hidden(model):
        return jax.jit(lambda p: model.apply({"params": p}, rows, train=False))(params)

    alone = hidden(plain)
    with jax.set_mesh(mesh):
        spread = hidden(ruled)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(alone, spread, atol=1e-5)


def test_every_parameter_names_its_axes():
    model = Model(**TINY | {"norm_position": "pre"})
    shapes = trees.flatten(
        jax.eval_shape(step.make(model, None).init, jax.random.key(0))
    )
    axes = step.logical_axes(model)
    flat = {
        "/".join(key.key for key in path): names
        for path, names in jax.tree_util.tree_leaves_with_path(
            axes, is_leaf=lambda node: isinstance(node, tuple)
        )
    }
    assert flat.keys() == shapes.keys()
    for path, names in flat.items():
        assert len(names) == len(shapes[path].shape), path
        assert (names[0] == "layers") == path.startswith("layers/"), path
    kernel = "layers/attention/query/kernel"
    assert flat[kernel] == ("layers", "embed", "heads", "head_dim")
    assert flat["layers/mlp/down/kernel"] == ("layers", "mlp", "embed")
    assert flat["embed/token/embedding"] == ("vocab", "embed")
    assert flat["heads/mlm/bias"] == ("vocab",)


def test_rows_longer_than_the_table_of_positions_are_refused():
    model = Model(**TINY)
    params = tiny.new(model)
    with pytest.raises(ConfigError, match=r"model\.max_len.*9 tokens"):
        model.apply({"params": params}, batch(1, 9), train=False)
    long = Model(**TINY | {"position": "sinusoidal"})
    params = tiny.new(long)
    jax.eval_shape(
        lambda p: long.apply({"params": p}, batch(1, 9), train=False), params
    )


def test_the_position_offset_skips_rows_of_the_table():
    model = Model(**TINY | {"position_offset": 2})
    params = tiny.new(model)
    table = params["embed"]["position"]["embedding"]
    assert table.shape == (8 + 2, 8)

    def total(table):
        embed = params["embed"] | {"position": {"embedding": table}}
        changed = params | {"embed": embed}
        out = jax.jit(lambda p: model.apply({"params": p}, batch(1, 4), train=False))(
            changed
        )
        return (out * jnp.arange(8)).sum()

    used = np.abs(jax.grad(total)(table)).max(axis=1) > 0
    assert used.tolist() == [False] * 2 + [True] * 4 + [False] * 4


def test_dropout_acts_in_training_alone_and_in_pooled_heads():
    model = Model(**TINY | {"dropout": 0.5})
    params = tiny.new(model)
    states = jax.random.normal(jax.random.key(1), (4, 3, 8))

    def outputs(seed, train):
        return model.apply(
            {"params": params},
            "nsp",
            states,
            train=train,
            method="head",
            rngs={"dropout": jax.random.key(seed)},
        )

    assert outputs(0, False).dtype == jnp.float32
    np.testing.assert_array_equal(outputs(0, False), outputs(1, False))
    assert (outputs(0, True) != outputs(1, True)).any()


def test_each_layer_drops_its_own_elements():
    """With nothing but a bias of 1 in each layer, states count the layers that kept."""
    model = Model(**TINY | {"norm_position": "pre", "d_model": 64, "dropout": 0.5})
    params = tiny.new(model)
    params = jax.tree.map(jnp.zeros_like, params)
    params["norm"]["scale"] += 1
    params["layers"]["mlp"]["down"]["bias"] += 1
    rngs = {"dropout": jax.random.key(0)}
    rows = batch(1, 1)
    states = jax.jit(lambda p: model.apply({"params": p}, rows, train=True, rngs=rngs))(
        params
    )
    assert len(np.unique(states)) == 3


def test_presets_are_read_without_jax():
    code = "import sys, lm.models.presets; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
