"""Tests that each key of config.json is applied, refused by name, or known as inert."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.errors import CheckpointError, ConfigError
from lm.hf import checkpoint
from lm.hf.families.keys import DROPOUTS, INERT, REQUIRED
from tests.hf import folders, goldens, peer

WHERE = Path("config.json")


@pytest.fixture(scope="module")
def classes():
    """Gives model type -> the fields of the installed library's config class."""
    return peer.ask("classes.py", *checkpoint.families())


@peer.needed
@pytest.mark.parametrize("kind", checkpoint.families())
def test_every_field_of_the_class_is_known(classes, kind):
    found = classes[kind]
    for family in checkpoint.families_of(kind):
        missing = found["fields"].keys() - family.known(found["fields"], WHERE)
        assert not missing, f"{family.model_type}: say what becomes of {missing}"
        assert family.aliases == found["aliases"]


@peer.needed
@pytest.mark.parametrize("kind", checkpoint.families())
def test_an_absent_key_has_the_default_of_the_class(classes, kind):
    fields = classes[kind]["fields"]
    for family in checkpoint.families_of(kind):
        for item in family.fields:
            if item.default is not None and item.key in fields:
                assert item.default == fields[item.key], item.key
        for key, values in (REQUIRED | dict(family.required)).items():
            assert fields.get(key, values[0]) in values, key


@peer.needed
@pytest.mark.parametrize("kind", checkpoint.families())
def test_a_key_is_applied_or_inert_or_refused_by_name(classes, kind):
    """Another value of a field changes config.model or is refused."""
    family = checkpoint.families()[kind]
    plain = classes[kind]["fields"] | {"model_type": kind}
    inert = INERT | DROPOUTS | family.inert | family.dropouts
    # These have an effect only together with another key, such as a window's switch.
    inert |= {"sliding_window", "max_window_layers", "layer_types", "head_dim"}
    before = family.read(plain, WHERE)
    for key in plain.keys() - inert - family.aliases.keys():
        for value in (True, False, 8, 1, 0.25, "relu", {"rope_theta": 5.0}):
            try:
                changed = family.read(plain | {key: value}, WHERE) != before
            except CheckpointError as error:
                changed = any(w in str(error) for w in (key, "window", "rope"))
                changed |= "_heads" in str(error) or "heads" in str(error)
            if changed:
                break
        assert changed, f"{key} changes nothing, and is in no list of such keys"


def changed(case, place, **config):
    """Makes a golden case with other keys in config.json; None removes a key."""
    shutil.copytree(goldens.PLACE / case, place)
    path = place / "config.json"
    given = json.loads(path.read_text()) | config
    path.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return place


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("llama", {"is_llama_config": True, "rope_interleaved": False}),
        ("qwen2", {"use_mrope": False, "unsloth_version": "2025.1"}),
        ("bert_tag", {"transformers_js_config": {"dtype": "q8"}}),
        ("bert_tag", {"layer_norm_epsilon": 1e-5}),
    ],
)
def test_keys_that_no_class_reads_are_named_and_ignored(tmp_path, case, config):
    found = checkpoint.open_checkpoint(changed(case, tmp_path / "hf", **config))
    assert found.model == checkpoint.open_checkpoint(goldens.PLACE / case).model
    notes = "\n".join(found.notes)
    for key in config:
        assert f"config.json: '{key}' is no key of a {case.split('_')[0]}" in notes
    if "layer_norm_epsilon" in config:
        assert "did you mean layer_norm_eps?" in notes


def test_other_rates_of_dropout_are_noted(tmp_path):
    found = checkpoint.open_checkpoint(goldens.PLACE / "gpt2_untied")
    assert found.model["dropout"] == 0.1
    assert "embd_pdrop=0.3 is model.dropout=0.1 here" in "\n".join(found.notes)
    assert not checkpoint.open_checkpoint(goldens.PLACE / "gpt2").notes


def test_three_keys_decide_the_feed_forward_layer():
    read = checkpoint.families()["t5"].read
    for given, wanted in [
        ({}, "relu"),
        ({"feed_forward_proj": "gated-gelu"}, "geglu_tanh"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "geglu"),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, "gelu_tanh"),
        ({"dense_act_fn": "silu", "is_gated_act": True}, "swiglu"),
    ]:
        assert read({"model_type": "t5", **given}, WHERE)["activation"] == wanted


def test_aliases_of_keys_are_read():
    read = checkpoint.families()["gpt2"].read
    assert read({"hidden_size": 24, "n_head": 2}, WHERE)["d_model"] == 24
    read = checkpoint.families()["t5"].read
    assert read({"head_dim": 8}, WHERE)["attention"]["head_dim"] == 8


def test_the_first_class_of_t5_has_another_name(tmp_path):
    other = {"architectures": ["T5WithLMHeadModel"]}
    found = checkpoint.open_checkpoint(changed("t5_v1_0", tmp_path / "hf", **other))
    wanted = checkpoint.open_checkpoint(goldens.PLACE / "t5_v1_0")
    assert found.sources.keys() == wanted.sources.keys()


def test_an_activation_is_refused_only_for_the_head_that_fixes_another(tmp_path):
    other = {"hidden_act": "gelu_new"}
    for case in ("roberta_classify", "roberta_tag", "roberta_span"):
        place = changed(case, tmp_path / case, **other)
        assert checkpoint.open_checkpoint(place).model["activation"] == "gelu_tanh"
    with pytest.raises(CheckpointError, match="which the mlm head of a roberta has"):
        checkpoint.open_checkpoint(changed("roberta_mlm", tmp_path / "mlm", **other))
    family = checkpoint.families()["roberta"]
    model = folders.model_of(goldens.PLACE / "roberta_mlm") | {"activation": "relu"}
    with pytest.raises(ConfigError, match="activation 'relu'"):
        family.check_parts(model, ("mlm",), "model")


def test_gelu_and_its_approximation_differ_in_a_gated_t5():
    """The two cases differ in the activation alone, by more than the tolerance."""
    opened = checkpoint.open_checkpoint(goldens.PLACE / "t5_gated")
    batch = goldens.batch(goldens.outputs("t5_gated"))
    model, params = goldens.model(opened), goldens.params(opened)
    exact = model.apply({"params": params}, batch, train=False)
    other = goldens.model(opened, activation="geglu_tanh")
    rough = other.apply({"params": params}, batch, train=False)
    assert np.abs(np.asarray(exact) - np.asarray(rough)).max() > 1e-4
