"""Features of the spelling of words: by hand, and in a recurrent network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from lm.data import words
from lm.models.base import Compute
from lm.models.blocks.characters import Characters
from lm.models.rnn import Model
from tests.objectives.test_tagging import TASK

SIZES = {"vocab_size": 12, "num_layers": 1, "d_model": 8, "bidirectional": True}


def test_bytes_of_words():
    made = words.bytes_of(["né", "abcdefg", ""], 4)
    assert made.tolist() == [
        [ord("n") + 1, 0xC3 + 1, 0xA9 + 1, 0],
        [98, 99, 103, 104],  # ab...fg
        [0, 0, 0, 0],
    ]


def test_filters_see_neighbours_and_give_the_largest_value():
    module = Characters(filters=5, dim=3, std=0.5, compute=Compute())
    bytes = np.zeros((2, 2, 6), np.int32)
    bytes[0, 0, :4] = [7, 3, 256, 9]
    bytes[0, 1, :1] = [4]
    bytes[1, 0] = [1, 2, 3, 4, 5, 6]
    params = meta.unbox(module.init(jax.random.key(0), jnp.asarray(bytes)))["params"]
    rng = np.random.default_rng(0)
    for part in ("filter", "output"):
        params[part]["bias"] = jnp.asarray(rng.normal(size=params[part]["bias"].shape))
    found = module.apply({"params": params}, jnp.asarray(bytes))
    table, filters = params["byte"]["embedding"], params["filter"]
    for row, word in ((0, 0), (0, 1), (1, 0)):
        used = [b for b in bytes[row, word] if b]
        x = [np.zeros(30), *(np.asarray(table[b]) for b in used), np.zeros(30)]
        seen = [
            np.einsum("we,wef->f", np.stack(x[at : at + 3]), filters["kernel"])
            for at in range(len(used))
        ]
        most = np.maximum(np.stack(seen) + filters["bias"], 0).max(0)
        wanted = most @ params["output"]["kernel"] + params["output"]["bias"]
        np.testing.assert_allclose(found[row, word], wanted, rtol=1e-4, atol=1e-5)
    assert (found[1, 1] == 0).all()


def test_a_tagger_reads_the_spelling_of_unknown_words():
    """Two words of one unknown token differ by their bytes alone, in either case."""
    task = dataclasses.replace(TASK, characters=4)
    model = Model(**SIZES, dropout=0.0, characters=5, heads=task.heads())
    assert model.reads == {"characters"} and "characters" in task.gives
    assert "characters" not in TASK.gives
    texts = ["Xyz", "xyz", "Xyz"]
    row = {
        "pieces": [np.asarray([3])] * 3,
        "sizes": [3],
        "tag": np.zeros(3, np.int32),
        "read": np.ones(3),
        "border": np.asarray([1, 0, 2], np.int32),
        "marked": np.zeros(3, np.int32),
        "bytes": words.bytes_of(texts, 4),
    }
    example = words.Aligned(5, (1,), (), 0)(row, None)
    assert example["characters"].shape == (5, 4)
    assert example["characters"][:, 0].tolist() == [0, 89, 121, 89, 0]
    batch = {name: jnp.asarray(array)[None] for name, array in example.items()}
    made = jax.jit(functools.partial(model.init, method="touch"))
    params = meta.unbox(made(jax.random.key(0)))["params"]

    @jax.jit
    def embedded(params):
        def ask(model):
            return model.spelling(batch["characters"])

        return model.apply({"params": params}, method=ask)[0]

    found = embedded(params)
    assert jnp.array_equal(found[1], found[3]) and not jnp.allclose(found[1], found[2])

    @jax.jit
    def gradient(params):
        def loss(params):
            ask = functools.partial(task.loss, batch=batch, train=False)
            return model.apply({"params": params}, method=ask)["tag"][0]

        return jax.grad(loss)(params)

    slopes = gradient(params)["characters"]
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
