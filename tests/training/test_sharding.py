"""lm.training.sharding: meshes, rules, places of parameters and states, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm import trees
from lm.errors import ConfigError
from lm.training import optim, sharding
from lm.training.sharding import RULES, MeshConfig

AXES = {
    "embed": {"embedding": ("vocab", "embed")},
    "layers": {
        "mlp": {
            "up": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
        },
        "square": {"kernel": ("layers", "embed", "mlp")},
    },
}
SHAPES = {
    "embed": {"embedding": (30, 8)},
    "layers": {
        "mlp": {"up": {"kernel": (3, 8, 16), "bias": (3, 16)}},
        "square": {"kernel": (3, 8, 8)},
    },
}


def params(make=jnp.ones):
    return jax.tree.map(make, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def specs(shardings):
    return {path: s.spec for path, s in trees.flatten(shardings).items()}


def test_data_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(MeshConfig(tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}
    one = sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert one.size == 1


@pytest.mark.parametrize("fields", [{"tensor": 3}, {"data": 4}, {"data": 0}])
def test_a_mesh_that_is_not_the_devices_is_refused(fields):
    with pytest.raises(ConfigError, match="8 devices"):
        sharding.make_mesh(MeshConfig(**fields))


def test_a_rule_onto_no_mesh_axis_is_refused():
    with pytest.raises(ConfigError, match="'model'"):
        sharding.make_mesh(MeshConfig(rules=(("mlp", "model"),)))


def test_rules_map_logical_axes():
    assert sharding.spec(("batch", "length"), RULES) == P(("data", "fsdp"), "sequence")
    assert sharding.spec(("embed", "heads", "head_dim"), RULES) == P(
        "fsdp", "tensor", None
    )
    # fsdp is taken by the batch, tensor by the first of the two that want it.
    assert sharding.spec(("batch", None, "embed"), RULES) == P(
        ("data", "fsdp"), None, None
    )
    assert sharding.spec(("heads", "mlp"), RULES) == P("tensor", None)
    first = (("mlp", "fsdp"), *RULES)
    assert sharding.spec(("mlp",), first) == P("fsdp")
    with pytest.raises(ConfigError, match="'expert'"):
        sharding.spec(("expert",), RULES)


def test_a_dimension_that_does_not_divide_is_whole_and_is_named():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=4))
    found = specs(sharding.param_shardings(AXES, params(), mesh, RULES))
    assert found == {
        "embed/embedding": P(None, "fsdp"),
        "layers/mlp/up/bias": P(None, "tensor"),
        "layers/mlp/up/kernel": P(None, "fsdp", "tensor"),
        "layers/square/kernel": P(None, "fsdp", "tensor"),
    }
    lines = sharding.left_whole(AXES, params(), mesh, RULES)
    assert lines == ["embed/embedding: vocab=30 is not a multiple of 4"]


def test_axes_that_do_not_fit_a_shape_are_an_error():
    mesh = sharding.make_mesh(MeshConfig())
    with pytest.raises(ValueError, match="w: axes"):
        sharding.param_shardings(
            {"w": ("embed",)}, {"w": jnp.ones((2, 2))}, mesh, RULES
        )


def optimizer(name, **options):
    settings = optim.Optim(name=name, options=options)
    return optim.make(settings, params(), lambda step: jnp.float32(0.01))


def state_of(tx):
    return {"params": params(), "opt_state": tx.init(params()), "step": jnp.int32(0)}


def test_moments_lie_as_their_parameters_and_counters_are_whole():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    state = state_of(optimizer("adamw"))
    found = specs(sharding.state_shardings(state, AXES, mesh, RULES))
    owned = {path.removeprefix("params/") for path in found if "params" in path}
    for path, where in found.items():
        owner = next((name for name in owned if path.endswith(name)), None)
        expected = found[f"params/{owner}"] if owner else P()
        assert where == expected, path
    assert sum(bool(where) for where in found.values()) == 3 * len(owned)
    assert found["params/layers/mlp/up/kernel"] == P(None, "fsdp", "tensor")


def test_factored_moments_keep_the_dimensions_that_survive():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    state = state_of(optimizer("adafactor", min_dim_size_to_factor=2))
    leaves, found = (
        {path: leaf for path, leaf in trees.flatten(tree).items() if "v_" in path}
        for tree in (state, sharding.state_shardings(state, AXES, mesh, RULES))
    )
    by_shape = {
        leaves[path].shape: found[path].spec for path in found if "up/kernel" in path
    }
    assert by_shape == {(3, 8): P(None, "fsdp"), (3, 16): P(None, "tensor")}
    # Which dimension of a square is lacking cannot be told: only the layers' is sure.
    square = {found[path].spec for path in found if "square" in path}
    assert square == {P(None, None)}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "muon")]


@pytest.mark.parametrize("name", ["adafactor", "lamb", *SLOW])
def test_an_update_on_eight_devices_equals_one(name):
    options = {"min_dim_size_to_factor": 2} if name == "adafactor" else {}
    tx = optimizer(name, **options)
    rng = np.random.default_rng(0)
    start = params(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32))
    grads = params(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32))

    def two_updates(config, devices):
        mesh = sharding.make_mesh(config, devices)
        state = {"params": start, "opt_state": tx.init(start)}
        where = sharding.state_shardings(state, AXES, mesh, RULES)

        def update(state, grads):
            change, opt_state = tx.update(grads, state["opt_state"], state["params"])
            new = jax.tree.map(jnp.add, state["params"], change)
            return {"params": new, "opt_state": opt_state}

        step = jax.jit(update, out_shardings=where)
        state = jax.device_put(state, where)
        moved = jax.device_put(grads, where["params"])
        return step(step(state, moved), moved)

    one = two_updates(MeshConfig(), jax.devices()[:1])
    many = two_updates(MeshConfig(fsdp=2, tensor=2), jax.devices())
    for path, leaf in trees.flatten(many).items():
        # Newton-Schulz, five rounds of products in another order, loses a digit.
        np.testing.assert_allclose(
            leaf, trees.flatten(one)[path], rtol=2e-4, atol=2e-6, err_msg=path
        )
    kernel = many["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 4, 8)


def test_bytes_per_device():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    where = sharding.param_shardings(AXES, params(), mesh, RULES)
    elements = 30 * 8 // 4 + 3 * 8 * 16 // 4 + 3 * 16 // 2 + 3 * 8 * 8 // 4
    assert sharding.bytes_per_device(params(), where) == 4 * elements


def test_rows_of_a_batch_lie_in_order_over_data_and_fsdp():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    host = {"inputs": np.arange(24).reshape(8, 3), "labels": np.arange(8)}
    batch = sharding.put_batch(host, mesh)
    assert set(batch) == {"inputs", "labels"}
    for name, rows in host.items():
        np.testing.assert_array_equal(batch[name], rows)
        for shard in batch[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, rows[shard.index])
            assert shard.data.shape == (2, *rows.shape[1:])


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    sharding.check_batch(16, 2, mesh)
    with pytest.raises(ConfigError, match=r"found 20.*multiple of 8.*Fix: use 16") as e:
        sharding.check_batch(20, 2, mesh)
    assert e.value.where == "batch_size"
    with pytest.raises(ConfigError, match="Fix: use 4,"):
        sharding.check_batch(1, 1, mesh)


def test_the_longest_path_decides_whose_moment_it_is():
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
    axes = {"norm": {"scale": ("embed",)}, "embed": {"norm": {"scale": ("mlp",)}}}
    tree = {"norm": {"scale": jnp.ones(8)}, "embed": {"norm": {"scale": jnp.ones(8)}}}
    state = {"params": tree, "opt_state": [tree]}
    found = specs(sharding.state_shardings(state, axes, mesh, RULES))
    assert found["opt_state/0/norm/scale"] == P("fsdp")
    assert found["opt_state/0/embed/norm/scale"] == P("tensor")
