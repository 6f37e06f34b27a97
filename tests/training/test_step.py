"""The update: accumulation, several devices, and what must not change a number."""

import jax
import numpy as np
import pytest

from lm import run as runs
from lm import trees
from lm.data import pipeline
from lm.data.stream import without_weight
from tests import tiny

PAIRS = {"objective": {"name": "mlm", "next": "nsp"}, "data__pack": False}
STILL = {"model__dropout": 0.0, "model__attention__dropout": 0.0}


def after(tmp_path, steps=2, **changes):
    """Parameters and the last measurements after some updates."""
    config = tiny.config(**changes)
    with tiny.some_devices(config):
        corpus, program = tiny.program(config, tmp_path)
        steps_of = runs.durations(config, corpus)
        training = runs.open_training(config, corpus, program, steps_of)
        with jax.set_mesh(program.mesh):
            state = training.start(program.init(jax.random.key(config.seed)))
            rows = pipeline.batches(
                corpus.stream,
                batch_size=config.batch_size,
                first_step=0,
                last_step=steps,
                data=runs.configs.build(pipeline.Data, config.data),
                shares=corpus.shares,
            )
            for batch in rows:
                on_devices = runs.on_devices(batch, program.mesh)
                state, measured = training.update(state, on_devices)
            return trees.flatten(jax.device_get(state.params)), jax.device_get(measured)


def largest_difference(a, b):
    return max(float(np.abs(a[path] - b[path]).max()) for path in a)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Pairs with two terms, without dropout, one device, the whole batch at once."""
    return after(tmp_path_factory.mktemp("reference"), **PAIRS, **STILL)


# Adam divides by the root of the second moment, so a rounding error of a gradient near
# zero moves a parameter by up to lr; SGD shows the gradients themselves.
SGD = {"optim": {"name": "sgd", "lr": 0.1, "warmup": 0, "clip": 0.0}}
TOLERANCE = 2e-6


@pytest.mark.parametrize("grad_accum", tiny.few([2, 4], {4}))
def test_accumulation_is_the_full_batch_for_two_terms(tmp_path, grad_accum):
    whole, at_once = after(tmp_path / "a", **PAIRS, **STILL, **SGD)
    split, in_parts = after(
        tmp_path / "b", **PAIRS, **STILL, **SGD, grad_accum=grad_accum
    )
    assert largest_difference(whole, split) < TOLERANCE
    for name in ("train/loss", "train/mlm_loss", "train/nsp_loss"):
        assert in_parts[name] == pytest.approx(at_once[name], abs=2e-6)
    assert in_parts["train/mlm_count"] == at_once["train/mlm_count"]


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"data": 2, "tensor": 2, "sequence": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda mesh: "-".join(f"{axis}{size}" for axis, size in mesh.items()),
)
def test_eight_devices_are_one(tmp_path, mesh):
    one, first = after(tmp_path / "a", **PAIRS, **STILL, **SGD)
    eight, second = after(tmp_path / "b", **PAIRS, **STILL, **SGD, mesh=mesh)
    assert largest_difference(one, eight) < TOLERANCE
    assert second["train/loss"] == pytest.approx(first["train/loss"], abs=2e-6)
    assert second["optim/gradient_norm"] == pytest.approx(
        first["optim/gradient_norm"], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "compute",
    [{"unroll": 0}, {"unroll": 2}, {"remat": "full"}, {"remat": "dots"}],
    ids=str,
)
def test_how_it_is_computed_changes_no_parameter_name_and_no_value(tmp_path, compute):
    """Dropout included: the masks are the same."""
    plain, _ = after(tmp_path / "a", **SGD)
    other, _ = after(tmp_path / "b", **SGD, compute=compute)
    assert plain.keys() == other.keys()
    assert largest_difference(plain, other) < TOLERANCE


def test_dropout_follows_the_seed_and_the_step(tmp_path):
    a, first = after(tmp_path / "a", steps=1)
    b, again = after(tmp_path / "b", steps=1)
    assert largest_difference(a, b) == 0
    assert first["train/loss"] == again["train/loss"]
    _, still = after(tmp_path / "c", steps=1, **STILL)
    assert first["train/loss"] != still["train/loss"]


def test_a_term_without_places_contributes_nothing(tmp_path):
    """A batch with no weight at all gives loss 0 and moves nothing but by decay."""
    config = tiny.config(**PAIRS, **STILL, **SGD, optim__weight_decay=0.0)
    with tiny.some_devices(config):
        corpus, program = tiny.program(config, tmp_path)
        training = runs.open_training(
            config, corpus, program, runs.durations(config, corpus)
        )
        padding = without_weight(corpus.stream.example(0))
        batch = {k: np.stack([v] * 8) for k, v in padding.items()}
        with jax.set_mesh(program.mesh):
            params = program.init(jax.random.key(0))
            before = trees.flatten(jax.device_get(params))
            state, measured = training.update(
                training.start(params), runs.on_devices(batch, program.mesh)
            )
    assert measured["train/loss"] == 0
    assert measured["train/nsp_count"] == 0
    after_it = trees.flatten(jax.device_get(state.params))
    assert largest_difference(before, after_it) == 0


@pytest.mark.slow
def test_adamw_on_eight_devices_stays_close(tmp_path, reference):
    params, _ = reference
    other, _ = after(tmp_path, **PAIRS, **STILL, mesh={"data": 4, "fsdp": 2})
    assert largest_difference(params, other) < 1e-3
