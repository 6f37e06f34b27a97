"""Recurrent cells with the weights of `torch.nn` give its outputs (stored arrays)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.rnn import Model
from lm.ops.recurrence import CELLS

GOLDEN = Path(__file__).parents[1] / "goldens" / "rnn.npz"


def parameters(cell, weights, golden):
    """Our parameters of torch's: kernels (D, G, D), and two biases."""
    layers = {"input": {}, "recurrent": {}}
    for side, name in (("input", "ih"), ("recurrent", "hh")):
        for kind, word in (("kernel", "weight"), ("bias", "bias")):
            stack = np.stack([weights[f"{word}_{name}_l{n}"] for n in range(2)])
            parts = stack.reshape(2, CELLS[cell].gates, -1, *stack.shape[2:])
            layers[side][kind] = (
                parts.transpose(0, 3, 1, 2) if word == "weight" else parts
            )
    if cell == "lstm":  # Ours adds 1 to the forget gate.
        layers["input"]["bias"] = layers["input"]["bias"] - np.eye(4)[1][:, None]
    found = {"embed": {"embedding": golden["table"]}, "layers": layers}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), found)


@pytest.mark.parametrize("cell", CELLS)
def test_the_states_are_those_of_torch(cell):
    with np.load(GOLDEN) as stored:
        golden = dict(stored)
    prefix = f"{cell}/"
    own = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    tokens = jnp.asarray(golden["tokens"])
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = {"inputs": tokens, "positions": positions}
    batch["segment_ids"] = jnp.ones_like(tokens)
    model = Model(vocab_size=24, cell=cell, num_layers=2, d_model=8, dropout=0.0)
    variables = {"params": parameters(cell, own, golden)}
    states, left = model.apply(variables, batch, train=False, mutable=["carry"])
    np.testing.assert_allclose(states, own["states"], atol=1e-6, rtol=1e-5)
    assert left["carry"].keys() == set(CELLS[cell].parts)
    for part, last in left["carry"].items():
        expected = own[f"last/{part}"].swapaxes(0, 1)
        np.testing.assert_allclose(last, expected, atol=1e-6, rtol=1e-5)
