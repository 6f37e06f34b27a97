"""A model whose state goes on from one batch to the next, in the update."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluations
from lm import run as runs
from lm.training import optim, sharding, step
from lm.training.criterion import Plain
from lm.updates.plain import Update
from tests import tiny

ROWS, WIDTH = 4, 3


class Model(nn.Module):
    """Adds up what it has read, scaled by its one parameter."""

    def make_carry(self, rows):
        return {"sum": jnp.zeros((rows, WIDTH))}

    @nn.compact
    def __call__(self, batch, train):
        scale = self.param("scale", nn.initializers.ones, (WIDTH,))
        carries = self.has_variable("carry", "sum")
        held = self.get_variable("carry", "sum") if carries else 0.0
        total = held + scale * batch["inputs"]
        if carries:
            self.put_variable("carry", "sum", total)
        return total

    def touch(self):
        return self({"inputs": jnp.zeros((1, WIDTH))}, train=False)


class Objective:
    """The mean square of what is left of the targets."""

    can = frozenset()

    def counts(self, batch):
        return {"square": jnp.float32(batch["targets"].size)}

    def loss(self, model, batch, *, train):
        out = model(batch, train=train)
        size = jnp.float32(batch["targets"].size)
        return {"square": (((out - batch["targets"]) ** 2).sum(), size)}


def batches(count):
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(ROWS, WIDTH)).astype(np.float32)  # noqa: E731
    return [{"inputs": draw(), "targets": draw()} for _ in range(count)]


def after(given, grad_accum=1, rows=ROWS):
    params = {"scale": jnp.ones(WIDTH)}
    settings = optim.Optim(name="sgd", lr=0.1, clip=0.0, weight_decay=0.0, ema=0.5)
    settings = dataclasses.replace(settings, decay_mask=((".*", 0.0),))
    rate = lambda _: jnp.float32(0.1)  # noqa: E731
    training = step.make_training(
        Plain(Model(), Objective()),
        optim.make(settings, params, rate),
        rate,
        seed=0,
        grad_accum=grad_accum,
        gradient=Update(),
        rows=rows,
    )
    state = training.start(params)
    for batch in given:
        state, _ = jax.jit(training.update)(state, batch)
    return state


def written_out(given):
    scale, total = np.ones(WIDTH), np.zeros((ROWS, WIDTH))
    for batch in given:
        out = total + scale * batch["inputs"]
        gradient = 2 * (out - batch["targets"]) * batch["inputs"] / out.size
        scale, total = scale - 0.1 * gradient.sum(0), out
    return scale, total


@pytest.mark.parametrize("grad_accum", [1, 2, 4])
def test_each_row_goes_on_whatever_the_cut(grad_accum):
    given = batches(3)
    state = after(given, grad_accum)
    scale, total = written_out(given)
    np.testing.assert_allclose(state.params["scale"], scale, rtol=1e-5)
    np.testing.assert_allclose(state.carried["sum"], total, rtol=1e-5)
    assert "carried" in state.saved()


def test_without_the_state_each_batch_begins_anew():
    given = batches(3)
    state = after(given, rows=0)
    assert state.carried == {} and "carried" not in state.saved()
    assert np.abs(state.params["scale"] - written_out(given)[0]).max() > 1e-3


def test_an_update_that_is_not_applied_leaves_the_state_as_it_is():
    given = batches(2)
    bad = given[1] | {"targets": given[1]["targets"] * np.nan}
    one, both = after(given[:1]), after([given[0], bad])
    np.testing.assert_array_equal(one.carried["sum"], both.carried["sum"])
    np.testing.assert_array_equal(one.params["scale"], both.params["scale"])
    np.testing.assert_array_equal(one.averaged["scale"], both.averaged["scale"])
    assert (one.averaged["scale"] != one.params["scale"]).all()


def test_what_is_carried_lies_as_the_rows_of_a_batch():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    shapes = jax.eval_shape(lambda: after(batches(1)))
    axes = {"scale": (None,)}
    found = sharding.state_shardings(shapes, axes, mesh, sharding.RULES)
    assert found.carried["sum"] == sharding.batch_sharding(mesh)
    assert found.carried["sum"].shard_shape((ROWS, WIDTH)) == (1, WIDTH)


# ---- evaluations ----


def evaluated(tmp_path, *sections, seq_len=8):
    """The evaluations of a random LSTM by name, and its logits of the whole text."""
    texts = {"sources": [{"name": "memory", "items": tiny.documents(40, seed=1)}]}
    evals = {
        name: {
            "evaluator": "mean",
            "data": texts | {"order": order},
            "batch_size": n,
            "limit": limit,
        }
        for name, n, order, limit in sections
    }
    settings = tiny.config(
        model={"name": "rnn", "cell": "lstm", "d_model": 16, "init_std": 0.5},
        objective={"name": "causal_lm", "borders": "ignore", "bos": False},
        seq_len=seq_len,
        evals=evals,
    )
    runs.check(settings)
    corpus, program = tiny.program(settings, tmp_path)
    params = program.init(jax.random.key(0))
    opened = evaluations.open_evaluators(settings, tmp_path, corpus, program)
    found = {name: opened[name](params, 0) for name in evals}
    (index,) = next(iter(corpus.evals.values())).indices
    pieces = [index.row(n)["pieces"][0] for n in range(len(index))]
    text = np.concatenate([pieces[0][:1], *(piece[1:] for piece in pieces)])[None]
    batch = {"inputs": text[:, :-1], "segment_ids": np.ones_like(text[:, 1:])}
    batch["positions"] = np.arange(text.size - 1)[None]

    def logits(model, batch):
        return model.logits(model(batch, train=False))

    scores = program.model.apply(
        {"params": params}, jax.tree.map(jnp.asarray, batch), method=logits
    )
    chosen = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(scores))[0], text[0, 1:, None], axis=1
    )
    return found, -chosen[:, 0]


def test_an_evaluation_of_a_stream_is_that_of_one_long_text(tmp_path):
    """With any number of lanes, and rows of any length; and the limit is in rows."""
    found, losses = evaluated(
        tmp_path / "8",
        ("one", 1, "stream", None),
        ("three", 3, "stream", None),
        ("part", 3, "stream", 11),
        ("apart", 3, "shuffled", None),
    )
    other, _ = evaluated(tmp_path / "13", ("longer", 3, "stream", None), seq_len=13)
    for name, each in (found | other).items():
        known = losses[: 11 * 8] if name == "part" else losses
        assert each[f"{name}/targets"] == known.size
        gap = abs(each[f"{name}/lm_loss"] / known.mean() - 1)
        assert gap > 1e-4 if name == "apart" else gap < 1e-5
