"""Tests directories: consistent ones open, and errors list everything that differs."""

import json
import shutil

import flax.serialization
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.errors import CheckpointError
from lm.hf import checkpoint, importing
from lm.hf.formats import safetensors
from lm.models.presets import PRESETS
from tests.hf import folders, goldens


@pytest.fixture
def copy(tmp_path):
    """Returns a function that copies a golden case with changes."""

    def make(name, config=None, tensors=None, drop=()):
        place = tmp_path / name
        shutil.copytree(goldens.PLACE / name, place)
        path = place / "config.json"
        given = json.loads(path.read_text()) | (config or {})
        path.write_text(json.dumps({k: v for k, v in given.items() if k not in drop}))
        if tensors:
            held = tensors(dict(safetensors.read(place / "model.safetensors")))
            held = {key: np.array(value) for key, value in held.items()}
            (place / "model.safetensors").unlink()
            shapes = {key: (value.dtype, value.shape) for key, value in held.items()}
            safetensors.write(place, shapes, held.__getitem__)
        return place

    return make


def refusal(place):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.open_checkpoint(place)
    assert str(place) in caught.value.where
    return str(caught.value)


@pytest.mark.parametrize(
    "name, config, found",
    [
        (
            "bert_tag",
            {"hidden_act": "swish_glu"},
            "hidden_act: 'swish_glu'",
        ),
        ("bert_tag", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert_tag", {"is_decoder": True}, "is_decoder: True, not False"),
        ("bert_tag", {"hidden_size": "24"}, "hidden_size: '24', not a whole number"),
        ("bert_tag", {"hidden_size": [24]}, "hidden_size: [24]"),
        ("bert_tag", {"num_hidden_layers": 10**7}, "up to 1000"),
        ("bert_tag", {"num_attention_heads": 5}, "24 for 5 heads"),
        ("bert_tag", {"model_type": "xlnet"}, "model_type 'xlnet'"),
        ("bert_tag", {"auto_map": {"AutoModel": "evil.py"}}, "code of its own"),
        ("bert_tag", {"architectures": ["BertForX"]}, "architecture 'BertForX'"),
        ("bert_tag", {"id2label": {"1": "a"}}, "id2label"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        ("gpt2", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
        ("gpt2", {"hidden_size": 22}, "n_embd 21 and hidden_size 22"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2}}, "lm_head"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ("llama", {"rope_parameters": {"factor": 2.0}}, "rope settings"),
        ("llama", {"attention_bias": 1}, "attention_bias 1"),
        ("llama", {"rope_theta": 7.0}, "rope_theta 7.0, and 10000.0 in the rope"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ("llama", {"num_key_value_heads": 3}, "a divisor of 5"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("mistral", {"sliding_window": "x"}, "sliding_window 'x'"),
        ("t5_v1_0", {"feed_forward_proj": "gelu-gated"}, "gelu-gated"),
        ("t5_v1_0", {"dense_act_fn": "quick_gelu"}, "dense_act_fn 'quick_gelu'"),
        ("t5_v1_0", {"is_gated_act": "yes"}, "is_gated_act 'yes'"),
        ("roberta_mlm", {"hidden_act": "relu"}, "activation 'relu', expected 'gelu'"),
        ("roberta_mlm", {"pad_token_id": None}, "pad_token_id None"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_config_that_we_cannot_compute_is_refused(copy, name, config, found):
    if name == "llama" and "rope_scaling" in config:
        place, found = copy(name, config, drop=("rope_parameters",)), "rope_type 'yarn'"
    else:
        place = copy(name, config)
    assert found in refusal(place)


STRANGE = (None, [], {}, "x", -1, 0, 10**30, 1e300, True, [[1]], {"factor": []})


@pytest.mark.parametrize("name", goldens.NAMES)
def test_strange_values_end_in_a_refusal_or_change_nothing(name, tmp_path):
    """No value of config.json ends in another exception."""
    path = tmp_path / "config.json"
    given = json.loads((goldens.PLACE / name / "config.json").read_text())
    wanted = folders.model_of(goldens.PLACE / name)
    for key in [*given, "rope_scaling", "n_inner", "layer_types"]:
        for value in STRANGE:
            path.write_text(json.dumps(given | {key: value}))
            try:
                model = folders.model_of(tmp_path)
            except CheckpointError as error:
                assert str(path) in error.where
                continue
            assert model.keys() == wanted.keys(), (key, value)
            sizes = [model[n] for n in ("num_heads", "d_model", "d_ff", "vocab_size")]
            assert all(type(n) is int and n > 0 for n in sizes), (key, value)


def test_older_keys_of_rope_are_read(copy):
    scaling = {"type": "linear", "factor": 2.0}
    old = {"rope_theta": 1000.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    place = copy("llama_linear", old, drop=("rope_parameters", "dtype"))
    new = checkpoint.open_checkpoint(goldens.PLACE / "llama_linear").model
    assert checkpoint.open_checkpoint(place).model == new
    assert new["rope"]["scaling"] == "linear" and new["rope"]["factor"] == 2.0


def test_all_wrong_tensors_are_listed_with_the_nearest(copy):
    layer = "bert.encoder.layer.0."

    def spoil(tensors):
        query = f"{layer}attention.self.query."
        tensors[f"{layer}attention.self.querry.weight"] = tensors.pop(f"{query}weight")
        tensors[f"{layer}output.dense.bias"] = np.zeros(25, np.float32)
        tensors[f"{query}bias"] = np.zeros(24, np.float64)
        return tensors

    line = refusal(copy("bert_tag", tensors=spoil))
    nearest = f"(nearest: {layer}attention.self.querry.weight)"
    assert f"{layer}attention.self.query.weight: missing {nearest}" in line
    assert f"{layer}output.dense.bias: shape (25,), not (24,)" in line
    assert f"{layer}attention.self.query.bias: dtype float64" in line
    assert f"{layer}attention.self.querry.weight: extra (nearest: {layer}" in line


def test_tied_tensors_that_differ_are_refused(copy):
    name = "lm_head.weight"

    def untie(tensors, by=1.0):
        return tensors | {name: tensors["transformer.wte.weight"] + np.float32(by)}

    assert f"{name}: found other numbers" in refusal(copy("gpt2", tensors=untie))


def test_copies_buffers_and_old_names_are_accepted(copy):
    def old(tensors):
        words = "bert.embeddings.word_embeddings.weight"
        bias = tensors.pop("cls.predictions.bias")
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        return tensors | {
            "cls.predictions.decoder.weight": tensors[words],
            "cls.predictions.decoder.bias": bias,
            "bert.embeddings.position_ids": np.arange(40)[None],
        }

    place = copy("bert_pretraining", tensors=old)
    same(place, "bert_pretraining")


def same(place, name):
    wanted = checkpoint.open_checkpoint(goldens.PLACE / name)
    found = checkpoint.open_checkpoint(place)
    assert found.sources.keys() == wanted.sources.keys()
    one = importing.load(found, importing.shapes(found))
    two = importing.load(wanted, importing.shapes(wanted))
    for path, leaf in two.items():
        np.testing.assert_array_equal(one[path], leaf, path)


def test_a_bare_model_has_no_prefix_and_no_head(copy):
    def bare(tensors):
        return {
            name.removeprefix("transformer."): value for name, value in tensors.items()
        }

    place = copy("gpt2", {"architectures": ["GPT2Model"]}, tensors=bare)
    same(place, "gpt2")


def test_a_masked_lm_keeps_its_pooler_and_nsp_head(copy):
    """bert-base-uncased has these tensors, and BertForMaskedLM in config.json."""
    place = copy("bert_pretraining", {"architectures": ["BertForMaskedLM"]})
    assert checkpoint.open_checkpoint(place).parts == ("mlm", "nsp", "pooler")


def test_flax_weights_are_the_same_model(tmp_path):
    for name in ("bert_pretraining", "gpt2"):
        place = tmp_path / name
        shutil.copytree(goldens.PLACE / name, place)
        tensors = safetensors.read(place / "model.safetensors")
        (place / "model.safetensors").unlink()
        tree: dict = {}
        for tensor, value in tensors.items():
            *modules, last = tensor.split(".")
            table = "embeddings" in tensor or "wte" in tensor or "wpe" in tensor
            if last == "weight" and value.ndim == 1:
                last = "scale"
            elif last == "weight":
                last = "embedding" if table else "kernel"
            node = tree
            for module in modules:
                node = node.setdefault(module, {})
            node[last] = value.T if last == "kernel" else value
        data = flax.serialization.to_bytes(tree)
        (place / "flax_model.msgpack").write_bytes(data)
        same(place, name)


def test_a_google_checkpoint_is_opened_as_bert(tmp_path):
    place = tmp_path / "google"
    shutil.copytree(goldens.PLACE / "tf1_bert", place)
    config = {
        "vocab_size": 17,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 10,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
    }
    path = place / "bert_config.json"
    path.write_text(json.dumps(config | {"architectures": ["BertModel", "Other"]}))
    with pytest.raises(CheckpointError, match=r"bert_config.json: .*architectures"):
        checkpoint.open_checkpoint(place)
    path.write_text(json.dumps(config))
    opened = checkpoint.open_checkpoint(place)
    assert opened.parts == ("mlm", "nsp", "pooler")
    params = importing.load(opened, importing.shapes(opened))
    wanted = np.load(place / "bert_model.npz")
    up = [wanted[f"bert/encoder/layer_{i}/intermediate/dense/kernel"] for i in (0, 1)]
    np.testing.assert_array_equal(params["layers/mlp/up/kernel"], np.stack(up))
    nsp = wanted["cls/seq_relationship/output_weights"]
    np.testing.assert_array_equal(params["heads/nsp/kernel"], nsp.T)


def test_parameters_are_loaded_into_their_shards():
    opened = checkpoint.open_checkpoint(goldens.PLACE / "llama")
    whole = importing.load(opened, importing.shapes(opened))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "layers/mlp/up/kernel": P(None, "b", "a"),
        "embed/token/embedding": P(None, "b"),
    }
    targets = {
        path: jax.ShapeDtypeStruct(
            whole[path].shape, np.float32, sharding=NamedSharding(mesh, spec)
        )
        for path, spec in specs.items()
    }
    found = importing.load(opened, targets)
    assert found["layers/mlp/up/kernel"].addressable_shards[0].data.shape == (3, 5, 20)
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, whole[path])


# The keys of published config.json files that decide what is computed.
BERT_BASE = {"model_type": "bert", "vocab_size": 30522}
GPT2_SMALL = {"model_type": "gpt2", "n_ctx": 1024}
LLAMA_2_7B = {
    **{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096},
    **{"intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_scaling": None},
}
LLAMA_3_1_8B = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096},
    **{"intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "max_position_embeddings": 131072},
    **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0},
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
ROBERTA_BASE = {
    **{"model_type": "roberta", "vocab_size": 50265, "type_vocab_size": 1},
    **{"layer_norm_eps": 1e-5, "max_position_embeddings": 514},
}


@pytest.mark.parametrize(
    "preset, config",
    [
        ("bert_base", BERT_BASE),
        ("roberta_base", ROBERTA_BASE),
        ("gpt2_small", GPT2_SMALL),
        ("llama2_7b", LLAMA_2_7B),
        ("llama3_1_8b", LLAMA_3_1_8B),
    ],
)
def test_published_models_are_our_presets(preset, config):
    from lm.config import resolve as configs
    from lm.hf.source import different
    from tests import tiny

    family = checkpoint.families_of(config["model_type"])[0]
    theirs = family.read(config, goldens.PLACE)
    model = {"name": "transformer", "preset": preset}
    objective = {"decoder": "causal_lm"}.get(theirs["kind"], "mlm")
    given = tiny.tree(objective={"name": objective}, evals={})
    ours = configs.resolve(given | {"model": model}).model
    assert different(ours, theirs) == []
    assert preset in PRESETS
