"""The checks of lm.verify: each passes, and each sees the defect that it is for."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checks import invariances
from lm.models import rnn, transformer
from lm.models.blocks import stack
from lm.objectives import causal_lm
from lm.ops import recurrence
from lm.ops.attention import xla
from lm.training import sharding
from lm.updates import base as updates
from tests import tiny

CONFIGS = {
    "decoder": {
        "model__preset": "llama_tiny",
        "model__num_heads": 4,
        "model__attention__kv_heads": 2,
        "objective": {"name": "causal_lm"},
    },
    "encoder": {},
    "encoder_decoder": {
        "model__preset": "t5_small",
        "objective": {"name": "span_corruption"},
    },
    "recurrent": {
        "model": {"name": "rnn", "num_layers": 2, "d_model": 16},
        "objective": {"name": "causal_lm"},
    },
    "prefix_lm": {"model__preset": "gpt2_small", "objective": {"name": "prefix_lm"}},
}


def subject_of(kind, folder):
    changes = {"evals": {}, **CONFIGS[kind]}
    if kind == "encoder_decoder":
        changes["tokenizer"] = {"name": "spm", "vocab_size": 90, "extra_ids": 10}
    if kind == "prefix_lm":
        kinds = ("unk", "pad", "bos", "eos", "mask")
        changes["tokenizer"] = {"name": "word", "kind": "word", "specials": kinds}
    return invariances.Subject(tiny.config(**changes), folder, lambda line: None)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subject_of("decoder", tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def afresh(subject):
    """The subject, with nothing computed yet."""
    subject = copy.copy(subject)
    vars(subject).pop("expected", None)
    return subject


DECODER = [name for name in invariances.CHECKS if name != "carry"]


@pytest.mark.parametrize("name", tiny.few(DECODER, {"padding", "cache"}))
def test_a_sound_model_passes(subject, name):
    found = invariances.CHECKS[name](subject)
    assert found.first is None and found.largest < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", invariances.CHECKS)
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "decoder"])
def test_other_kinds_pass(kind, name, tmp_path):
    check, subject = invariances.CHECKS[name], subject_of(kind, tmp_path)
    lacks = {"cache": ("encoder",), "carry": CONFIGS.keys() - {"recurrent"}}
    if kind in lacks.get(name, ()):
        word = {"cache": "extend", "carry": "carry"}[name]
        with pytest.raises(invariances.NotApplicable, match=f"without '{word}'"):
            check(subject)
        return
    found = check(subject)
    assert found.first is None and found.largest < 1e-5


def sees(check, subject, first=None):
    found = check(subject)
    assert found.largest > 10 * invariances.TOLERANCE
    assert found.first == first if first else found.first is not None


@pytest.mark.parametrize("name", ["packing", "cache", "carry"])
def test_a_recurrent_model_that_forgets_is_seen(name, tmp_path, monkeypatch):
    """Its state is neither handed on nor, where a text begins, zeros."""
    subject, check = subject_of("recurrent", tmp_path), invariances.CHECKS[name]
    found = check(subject)
    assert found.first is None and found.largest < 1e-5
    vars(subject).pop("expected", None)
    if name == "packing":
        sound = recurrence.boundaries
        blind = lambda *args: sound(*args)._replace(begins=args[1] < 0)  # noqa: E731
        monkeypatch.setattr(rnn, "boundaries", blind)
    elif name == "carry":
        monkeypatch.setattr(rnn.Model, "has_variable", lambda *args: False)
    else:
        forgets = lambda self, batch, cache: (  # noqa: E731
            rnn.Model._run(self, batch, jax.tree.map(jnp.zeros_like, cache), False)
        )
        monkeypatch.setattr(rnn.Model, "extend", forgets)
    sees(check, subject)


def test_padding_that_is_seen(afresh, monkeypatch):
    visible = xla.visible

    def defect(query, key, **options):
        return visible(query, key, **options) | (key.segments == 0)[:, None, None]

    monkeypatch.setattr(xla, "visible", defect)
    sees(invariances.padding, afresh, "loss")


@pytest.mark.slow
def test_segments_that_see_each_other(afresh, monkeypatch):
    visible = xla.visible

    def defect(query, key, **options):
        one = [p._replace(segments=(p.segments > 0).astype(int)) for p in (query, key)]
        return visible(*one, **options)

    monkeypatch.setattr(xla, "visible", defect)
    sees(invariances.packing, afresh)


@pytest.mark.slow
def test_rows_that_count_by_their_place(afresh, monkeypatch):
    loss = causal_lm.Objective.loss

    def defect(self, model, batch, *, train):
        weights = batch["weights"]
        weights = weights * jnp.linspace(0.5, 1.5, len(weights))[:, None]
        return loss(self, model, batch | {"weights": weights}, train=train)

    monkeypatch.setattr(causal_lm.Objective, "loss", defect)
    sees(invariances.order, afresh, "loss")


@pytest.mark.slow
def test_micro_batches_that_are_one_and_the_same(afresh, monkeypatch):
    def defect(x, parts):
        part = x[: x.shape[0] // parts]
        return jnp.broadcast_to(part, (parts, *part.shape))

    monkeypatch.setattr(updates, "_split", defect)
    sees(invariances.accumulation, afresh)


@pytest.mark.slow
def test_a_scan_in_another_order(afresh, monkeypatch):
    scan = stack.nn.scan

    def defect(layer, **options):
        return scan(layer, **options, reverse=options["unroll"] > 1)

    monkeypatch.setattr(stack.nn, "scan", defect)
    sees(invariances.scan, afresh, "loss")


@pytest.mark.slow
def test_a_gradient_that_remat_loses(afresh, monkeypatch):
    right = stack.rematerialised

    def defect(layer, compute, *, static):
        class Wrong(layer):
            def __call__(self, x, *rest):
                return super().__call__(jax.lax.stop_gradient(x), *rest)

        return right(
            layer if compute.remat == "none" else Wrong, compute, static=static
        )

    monkeypatch.setattr(stack, "rematerialised", defect)
    found = invariances.remat(afresh)
    assert found.first not in (None, "loss") and found.largest > 1e-2


@pytest.mark.slow
def test_rows_that_several_devices_mix_up(afresh, monkeypatch):
    put = sharding.put_batch

    def defect(batch, mesh):
        if mesh.size > 1:
            batch = batch | {"targets": np.roll(batch["targets"], 1, axis=0)}
        return put(batch, mesh)

    monkeypatch.setattr(sharding, "put_batch", defect)
    sees(invariances.devices, afresh, "loss")


def test_a_cache_that_is_one_place_off(afresh, monkeypatch):
    extend = transformer.Model.extend

    def defect(self, batch, cache):
        late = batch["positions"] + (batch["inputs"].shape[1] == 1)
        return extend(self, batch | {"positions": late}, cache)

    monkeypatch.setattr(transformer.Model, "extend", defect)
    sees(invariances.cache, afresh, "logits")


def test_rows_with_a_value_for_the_row_are_not_packed(subject):
    labels = {"labels": np.zeros(8, np.int32)}
    with pytest.raises(invariances.NotApplicable, match="labels for a row"):
        invariances.packed(subject.batch | labels)


def test_positions_of_targets_move_with_their_row():
    rows = np.arange(8, dtype=np.int32).reshape(4, 2)
    batch = {"inputs": rows, "segment_ids": np.array([[1, 2], [1, 0], [1, 1], [1, 2]])}
    batch |= {"target_positions": np.array([[1], [0], [0], [1]])}
    found = invariances.packed(batch)
    assert found["inputs"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found["segment_ids"].tolist() == [[1, 2, 3, 0], [1, 1, 2, 3]]
    assert found["target_positions"].tolist() == [[1, 2], [0, 3]]


def test_differences_are_relative_and_name_the_first():
    expected = {"a": np.array([1.0, 100.0]), "b": np.array([1e-9]), "c": np.zeros(2)}
    near = {"a": np.array([1.0, 100.001]), "b": np.array([2e-9]), "c": np.zeros(2)}
    found = invariances.compare(expected, expected, near)
    assert found.first is None and found.largest == pytest.approx(1e-5)
    far = near | {"b": np.array([0.1]), "c": np.array([0.0, 1.0])}
    found = invariances.compare(expected, far)
    assert found.first == "b" and found.largest == pytest.approx(10.0)
    missing = {name: x * np.nan for name, x in expected.items()}
    found = invariances.compare(expected, missing)
    assert found.first == "a" and np.isnan(found.largest)
