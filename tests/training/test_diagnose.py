"""Where a value that is not finite came from: the batch, a parameter, a module."""

import jax
import jax.numpy as jnp
import pytest

from lm import run as runs
from lm import trees
from lm.training import diagnose
from tests import tiny


@pytest.fixture(
    scope="module",
    params=["full", pytest.param("none", marks=pytest.mark.slow)],
)
def opened(request, tmp_path_factory):
    """A training, its first state and a batch, without and with rematerialisation."""
    config = tiny.config(compute={"remat": request.param})
    corpus, program = tiny.program(config, tmp_path_factory.mktemp("run"))
    steps_of = runs.durations(config, corpus)
    training = runs.open_training(config, corpus, program, steps_of)
    with jax.set_mesh(program.mesh):
        state = training.start(program.init(jax.random.key(0)))
        yield training, state, tiny.batch(corpus, rows=8)


def found(opened, params=None, **changes):
    training, state, batch = opened
    if params:
        flat = trees.flatten(state.params)
        flat |= {path: change(flat[path]) for path, change in params.items()}
        state = state._replace(params=trees.unflatten(state.params, flat))
    batch = batch | {name: change(batch[name]) for name, change in changes.items()}
    return diagnose.first_bad(training.loss, training.gradients, state, batch)


def test_a_sound_update_has_nothing_bad(opened):
    assert found(opened) == "not found: computed again, all is finite"


def test_a_bad_batch(opened):
    poison = {"weights": lambda x: x.at[3].set(jnp.nan)}
    assert found(opened, **poison) == "the batch weights"


def test_a_bad_parameter_with_its_layer(opened):
    path = "layers/mlp/up/kernel"
    bad = {path: lambda x: x.at[1, 0, 0].set(jnp.inf)}
    assert found(opened, bad) == "the parameter layers/1/mlp/up/kernel"


def test_the_first_module_that_overflows(opened):
    path = "layers/mlp/down/kernel"
    bad = {path: lambda x: x.at[1].set(jnp.where(x[1] > 0, 3e38, -3e38))}
    line = found(opened, bad)
    assert line.startswith("the output of layers/mlp")
    assert line.endswith("call 2 of it")


def test_the_first_gradient():
    leaves = {"layers": {"a": jnp.ones((3, 2))}, "z": jnp.ones(2)}
    assert diagnose.first_in(leaves) is None
    leaves["layers"]["a"] = leaves["layers"]["a"].at[2, 1].set(jnp.nan)
    leaves["z"] = leaves["z"] * jnp.inf
    assert diagnose.first_in(leaves) == "layers/2/a"
    assert diagnose.first_in({"z": leaves["z"]}) == "z"
