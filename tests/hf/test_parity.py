"""Compares logits, hidden states and packed rows with `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.hf import checkpoint
from tests.hf import goldens

# One of each kind in the fast suite.
FEW = ("bert_pretraining", "gpt2", "llama_3_1", "mistral", "t5_v1_1")
FEW += ("distilbert_classify", "llama_classify", "llama_span")
FEW += ("t5_classify", "t5_tag", "t5_dense_act", "gpt2_untied")
FEW += ("llama_attention_bias", "llama_mlp_bias")


def each(names):
    return [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in names
    ]


@pytest.fixture(scope="module", params=each(goldens.NAMES))
def case(request):
    """Gives name, checkpoint, model, parameters, batch and outputs of transformers."""
    opened = checkpoint.open_checkpoint(goldens.PLACE / request.param)
    wanted = goldens.outputs(request.param)
    return (
        request.param,
        opened,
        goldens.model(opened),
        goldens.params(opened),
        goldens.batch(wanted),
        wanted,
    )


def all_outputs(model, batch):
    """Returns the outputs of a bound model's heads, or the hidden states if none."""
    hidden, segments = model(batch, train=False), batch["segment_ids"]
    found = {
        head.name: model.head(head.name, hidden, segments, train=False)
        for head in model.heads
        if not head.logits
    }
    words = model.kind != "encoder" and not model.heads
    if words or any(head.logits for head in model.heads):
        found["words"] = model.logits(hidden)
    return found or {"states": hidden}


def test_the_parameters_are_those_of_the_model(case):
    _, _, model, params, _, _ = case
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), method="touch"))
    shapes = jax.tree.map(lambda leaf: leaf.value.shape, fresh["params"], is_leaf=boxed)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, params)


def boxed(leaf):
    return hasattr(leaf, "axes")


def test_logits(case):
    name, _, model, params, batch, wanted = case
    found = model.apply({"params": params}, batch, method=all_outputs)
    mask = batch["segment_ids"]
    assert ("states" in found) == (name in ("t5_encoder", "t5_gated"))
    if name == "bert_pretraining":
        goldens.close(found["words"], wanted["prediction_logits"], mask)
        goldens.close(found["nsp"], wanted["seq_relationship_logits"])
    elif "classify" in found:
        goldens.close(found["classify"], wanted["logits"])
    else:
        assert len(found) == 1
        goldens.close(*found.values(), theirs(wanted), mask)


def theirs(wanted):
    for name in ("logits", "prediction_logits"):
        if name in wanted:
            return wanted[name]
    return wanted["hidden_states"][-1]


def first_layers(params, count, stack=""):
    """Returns the parameters of a model that ends after `count` layers of a stack."""
    if stack:
        return params | {stack: first_layers(params[stack], count)}
    return params | {
        "layers": jax.tree.map(lambda leaf: leaf[:count], params["layers"])
    }


def normed(states, params, model):
    """Returns the hidden states after each layer, from models of fewer layers."""
    states = np.asarray(states, np.float64)
    scale, bias = params["norm"]["scale"], params["norm"].get("bias", 0.0)
    if model.norm == "layer":
        states = states - states.mean(-1, keepdims=True)
    power = np.mean(states**2, -1, keepdims=True) + model.norm_epsilon
    return states / np.sqrt(power) * np.asarray(scale) + np.asarray(bias)


def test_states_of_each_layer(case):
    _, opened, model, params, batch, wanted = case
    if model.kind == "encoder_decoder":
        pytest.skip("has two stacks, which follow")
    states, count = wanted["hidden_states"], model.num_layers
    assert len(states) == count + 1
    for layer in range(1, count + 1):
        shorter = goldens.model(opened, num_layers=layer)
        found = shorter.apply(
            {"params": first_layers(params, layer)}, batch, train=False
        )
        wanted = states[layer]
        if model.norm_position == "pre" and layer < count:
            wanted = normed(wanted, params, model)
        goldens.close(found, wanted, batch["segment_ids"])


@pytest.mark.parametrize("name", each(["t5_v1_0", "t5_v1_1"]))
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_states_of_each_layer_of_two_stacks(name, stack):
    opened = checkpoint.open_checkpoint(goldens.PLACE / name)
    params, wanted = goldens.params(opened), goldens.outputs(name)
    batch, states = goldens.batch(wanted), wanted[f"{stack}_hidden_states"]
    encoders = opened.model["encoder_layers"]
    count = encoders if stack == "encoder" else opened.model["num_layers"]
    side, method = ("source_", "encode") if stack == "encoder" else ("", None)
    assert len(states) == count + 1
    for layer in range(1, count + 1):
        field = {"encoder": "encoder_layers", "decoder": "num_layers"}[stack]
        sizes = {"encoder_layers": encoders} | {field: layer}
        shorter = goldens.model(opened, **sizes)
        cut = first_layers(params, layer, stack)
        found = shorter.apply({"params": cut}, batch, train=False, method=method)
        wanted = states[layer]
        if layer < count:
            wanted = normed(wanted, params[stack], shorter)
        goldens.close(found, wanted, batch[f"{side}segment_ids"])


def test_packed_rows_have_the_same_logits(case):
    """Packs the three rows into one row, with padding between them."""
    name, _, model, params, batch, wanted = case
    if "classify" in name:
        pytest.skip("its head is of whole rows")
    rows = len(batch["inputs"])

    def packed(key, leaf):
        if key.endswith("segment_ids"):
            leaf = leaf * (1 + jnp.arange(rows)[:, None])
        return leaf.reshape(1, -1)

    one = {key: packed(key, leaf) for key, leaf in batch.items()}
    found = model.apply({"params": params}, one, method=all_outputs)
    found.pop("nsp", None)
    (ours,), wanted = found.values(), theirs(wanted)
    goldens.close(ours.reshape(wanted.shape), wanted, batch["segment_ids"])
