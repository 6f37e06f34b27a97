import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.errors import CheckpointError, ConfigError
from lm.transfer import load_params
from lm.workdir.checkpoint import Checkpoint, Checkpointer, Init


def params(offset=0.0, classes=2):
    return {
        "layers": {
            "attention": {"kernel": offset + jnp.arange(64.0).reshape(2, 8, 4)},
            "mlp": {"bias": offset + jnp.arange(8.0).reshape(2, 4)},
        },
        "heads": {"classify": {"kernel": jnp.full((4, classes), offset)}},
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A workdir with steps 1 (the best) and 2."""
    workdir = tmp_path_factory.mktemp("source")
    saver = Checkpointer(workdir, Checkpoint(best="held/loss"))
    for step in (1, 2):
        weights = params(100.0 * step)
        state = {
            "step": jnp.int32(step),
            "params": weights,
            "opt_state": optax.adamw(1e-3).init(weights),
        }
        saver.save(step, state, {}, value=float(step))
    saver.close()
    return str(workdir)


def test_all_is_loaded_from_the_step_asked_for(source):
    for which, offset in {"latest": 200.0, "best": 100.0, 1: 100.0}.items():
        got, report = load_params(Init(source=source, checkpoint=which), params())
        for a, b in zip(
            jax.tree.leaves(got), jax.tree.leaves(params(offset)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        assert len(report.loaded) == 3 and report.fresh == report.unused == ()


def test_abstract_parameters_give_the_shardings(source):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def leaf(x):
        spec = P(None, "fsdp") if x.ndim == 3 else P()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    wanted = jax.tree.map(leaf, params())
    got, _ = load_params(Init(source=source), wanted)
    kernel = got["layers"]["attention"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 1, 4)
    np.testing.assert_array_equal(
        kernel, params(200.0)["layers"]["attention"]["kernel"]
    )


def test_fresh_keeps_what_was_given_and_unused_is_listed(source):
    model = params(-1.0)
    model["heads"] = {"tag": {"kernel": jnp.full((4, 9), -5.0)}}
    init = Init(source=source, missing=("heads/.*",))
    got, report = load_params(init, model)
    np.testing.assert_array_equal(got["heads"]["tag"]["kernel"], np.full((4, 9), -5.0))
    np.testing.assert_array_equal(
        got["layers"]["mlp"]["bias"], params(200.0)["layers"]["mlp"]["bias"]
    )
    assert report.loaded == ("layers/attention/kernel", "layers/mlp/bias")
    assert report.fresh == ("heads/tag/kernel",)
    assert report.unused == ("heads/classify/kernel",)
    assert "2 loaded, 1 fresh, 1 unused" in str(report)
    assert "fresh: heads/tag/kernel" in str(report)


def test_missing_without_leave_and_other_shapes_are_refused_together(source):
    model = params(classes=3)
    model["layers"]["mlp"] = {"bais": jnp.zeros((2, 4))}
    with pytest.raises(CheckpointError) as caught:
        load_params(Init(source=source, missing=("heads/.*", "mlp.*")), model)
    found = caught.value.found
    assert "layers/mlp/bais: not there (nearest: layers/mlp/bias)" in found
    assert "heads/classify/kernel: there float32 (4, 2), here float32 (4, 3)" in found
    assert caught.value.exit_code == 4


def test_another_dtype_is_refused_not_cast(source):
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    with pytest.raises(CheckpointError, match=r"there float32 .* here bfloat16"):
        load_params(Init(source=source), model)


def test_map_renames_and_sets_aside(source):
    old = params()
    model = {
        "encoder": {"layers": old["layers"]},
        "heads": {"classify": {"kernel": jnp.full((4, 3), -5.0)}},
    }
    rules = (("heads/(.*)", r"old/\1"), ("(layers/.*)", r"encoder/\1"))
    init = Init(source=source, map=rules, missing=("heads/.*",))
    got, report = load_params(init, model)
    np.testing.assert_array_equal(
        got["encoder"]["layers"]["attention"]["kernel"],
        params(200.0)["layers"]["attention"]["kernel"],
    )
    assert got["heads"]["classify"]["kernel"].shape == (4, 3)
    assert report.fresh == report.unused == ("heads/classify/kernel",)


@pytest.mark.parametrize(
    "init, where",
    [
        (Init(map=(("layer/.*", "x"),)), "map.0"),
        (Init(map=(("layers/(", "x"),)), "map.0"),
        (Init(map=(("(layers)/.*", r"\2"),)), "map.0"),
        (Init(map=((".*kernel", "same"),)), "map"),
        (Init(missing=("heads/(",)), "missing"),
    ],
)
def test_a_rule_that_does_nothing_or_makes_no_sense_is_refused(source, init, where):
    from dataclasses import replace

    with pytest.raises(ConfigError, match=f"init.{where}"):
        load_params(replace(init, source=source), params())


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path / "nowhere")):
        load_params(Init(source=str(tmp_path / "nowhere")), params())
