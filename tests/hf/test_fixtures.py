"""Compares with public reference arrays (apple/axlearn's test data)."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops.dense import dense
from lm.ops.norms import layer_norm
from lm.ops.positions import rotary_frequencies, rotate, rotation
from tests.hf.goldens import close

ROPE = "test_apply_rotary_position_embeddings_b2_nh3_ml10_d32_rkTrue_rvTrue"


@pytest.fixture
def arrays(test_data):
    """Returns a function of (file, test) that gives the arrays of the test by name."""
    place = test_data("ref_model_fixtures")

    def find(file, test):
        held = np.load(place / file)
        head = f"{test}/"
        return {k[len(head) :]: held[k] for k in held.files if k.startswith(head)}

    return find


def test_layer_norm_and_linear(arrays):
    file = "axlearn.common.layers_test.npz"
    found = arrays(file, "test_layer_norm_against_torch")
    x, scale, bias = (
        jnp.asarray(found[n]) for n in ("inputs/x", "params/scale", "params/bias")
    )
    close(layer_norm(x, scale, bias, epsilon=1e-8), found["outputs/ref"])
    found = arrays(file, "test_linear")
    x, kernel, bias = (
        jnp.asarray(found[n]) for n in ("inputs/x", "params/weight", "params/bias")
    )
    close(dense(x, kernel, bias), found["outputs/ref"])


def test_the_embeddings_of_bert(arrays):
    found = arrays(
        "axlearn.common.embedding_test.npz", "test_against_hf_bert_embeddings"
    )
    ids = found["inputs/input_ids"]
    tables = (found[f"params/{n}_emb/weight"] for n in ("token", "pos", "type"))
    token, place, kind = tables
    summed = token[ids] + place[0][: ids.shape[1]] + kind[0]
    scale, bias = found["params/norm/scale"], found["params/norm/bias"]
    ours = layer_norm(
        jnp.asarray(summed), jnp.asarray(scale), jnp.asarray(bias), epsilon=1e-12
    )
    close(ours, found["outputs/hidden_states"])


def test_rotary_frequencies(arrays):
    """The reference is a table of sines, then cosines."""
    found = arrays("rope_subset.npz", "test_rope_emb_b2_l10_d32")["outputs/ref"]
    cos, sin = rotation(jnp.arange(10)[None], rotary_frequencies(32))
    close(np.concatenate([sin[0, :, 0], cos[0, :, 0]], -1), found)


@pytest.mark.parametrize(
    "given, wanted", [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")]
)
def test_rotation(arrays, given, wanted):
    """The reference pairs neighbours, ours pairs halves: only the order differs."""
    found = arrays("rope_subset.npz", ROPE)
    sin, cos = np.split(found["inputs/sinusoidal_pos"], 2, axis=-1)
    order = np.concatenate([np.arange(0, 32, 2), np.arange(1, 32, 2)])
    x = jnp.asarray(found[f"inputs/{given}"][..., order])
    turn = np.broadcast_to(np.stack([cos, sin]), (2, 2, 10, 1, 16))
    close(rotate(x, jnp.asarray(turn)), found[f"outputs/{wanted}"][..., order])
