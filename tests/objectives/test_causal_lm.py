"""Causal language modelling: its examples, its loss, its evaluation in a run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluations
from lm import run as runs
from lm.errors import ConfigError
from lm.models import rnn
from lm.objectives import causal_lm
from tests import tiny

MODEL = {
    "name": "transformer",
    "preset": "llama_tiny",
    "vocab_size": None,
    "num_layers": 2,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 32,
    "attention": {"kv_heads": 1},
}


def settings(**changes):
    return tiny.config(model=MODEL, objective={"name": "causal_lm"}, **changes)


def test_the_loss_is_that_of_each_next_token(tmp_path):
    corpus, program = tiny.program(settings(), tmp_path)
    batch = tiny.batch(corpus)
    params = program.init(jax.random.key(0))
    total, count = program.metrics(params, batch)["lm_loss"]

    def logits(model, batch):
        return model.logits(model(batch, train=False))

    found = np.asarray(program.model.apply({"params": params}, batch, method=logits))
    p = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    expected = 0.0
    for row, column in zip(*np.nonzero(batch["weights"])):
        expected -= math.log(p[row, column, batch["targets"][row, column]])
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == np.asarray(batch["weights"]).sum()
    # A target is the next input, but at the end of a document.
    same = np.asarray(batch["segment_ids"])
    inside = (same[:, 1:] == same[:, :-1]) & (same[:, 1:] > 0)
    inputs, targets = np.asarray(batch["inputs"]), np.asarray(batch["targets"])
    assert (targets[:, :-1][inside] == inputs[:, 1:][inside]).all()
    codec = corpus.codec
    assert (inputs[np.asarray(batch["positions"]) == 0] == codec.bos_id).sum() >= 3
    assert (targets == codec.eos_id).sum() > 2


@pytest.mark.slow
def test_a_run_learns_and_its_evaluations_may_overlap(tmp_path):
    heldout = {"sources": [{"name": "memory", "items": tiny.documents(12, seed=1)}]}
    overlapping = {"evaluator": "mean", "data": heldout, "objective": {"stride": 6}}
    plain = {"evaluator": "mean", "data": heldout}
    evals = {"plain": plain, "overlapping": overlapping}
    run = settings(steps=20, evals=evals, optim__warmup=2)
    assert tiny.run(run, tmp_path) == 0
    last = tiny.rows(tmp_path)[-1]
    first = tiny.rows(tmp_path)[0]
    assert last["train/loss"] < first["train/loss"] - 0.3
    for name in evals:
        # A word is a token here; the same tokens are said, with more before them.
        bits = last[f"{name}/lm_loss"] / math.log(2)
        per_byte = last[f"{name}/bits_per_byte"]
        assert per_byte < bits / 2
        assert last[f"{name}/perplexity"] == pytest.approx(
            math.exp(last[f"{name}/lm_loss"])
        )
    assert last["plain/lm_loss"] != last["overlapping/lm_loss"]
    ratio = last["plain/bits_per_byte"] / last["plain/lm_loss"]
    again = last["overlapping/bits_per_byte"] / last["overlapping/lm_loss"]
    assert ratio == pytest.approx(again, rel=1e-5)


def test_a_stride_longer_than_the_row_is_refused(tmp_path):
    changes = {"objective": {"name": "causal_lm", "stride": 99}}
    run = tiny.config(model=MODEL, **changes)
    corpus, _ = tiny.program(run, tmp_path)
    with pytest.raises(ConfigError, match=r"objective\.stride: found 99.*seq_len=24"):
        len(corpus.stream)


def test_an_evaluation_cannot_change_a_field_that_is_not_there(tmp_path):
    heldout = {"sources": [{"name": "memory", "items": tiny.documents(4)}]}
    evals = {"h": {"evaluator": "mean", "data": heldout, "objective": {"strid": 6}}}
    with pytest.raises(ConfigError, match=r"objective\.strid.*stride"):
        tiny.run(settings(evals=evals), tmp_path)


@pytest.mark.parametrize("bos", [True, False])
def test_bits_per_byte_of_a_short_document_by_hand(bos, tmp_path):
    """18 bytes: the nats of the end token are given with and without."""
    document = ({"text": "the old dog sleeps"},)
    heldout = {"sources": [{"name": "memory", "items": document}]}
    config = tiny.config(
        model=MODEL,
        objective={"name": "causal_lm", "bos": bos},
        evals={"x": {"evaluator": "mean", "data": heldout}},
        data__pack=False,
    )
    corpus, program = tiny.program(config, tmp_path)
    with tiny.some_devices(config):
        opened_evals = evaluations.open_evaluators(config, tmp_path, corpus, program)
    params = program.init(jax.random.key(0))
    example = opened_evals["x"].examples.stream.example(0)
    batch = {k: jnp.asarray(v)[None] for k, v in example.items() if k != "example_ids"}

    def score(model, batch):
        return corpus.objective.score(model, batch)[0]

    scores = program.model.apply({"params": params}, batch, method=score)
    targets = batch["targets"][0]
    real = np.asarray(batch["weights"][0]) > 0
    end = real & (np.asarray(targets) == corpus.codec.eos_id)
    assert real.sum() == 4 + bos and end.sum() == 1
    nats = -np.asarray(scores[0], np.float64)
    # Without a token before it "the" is no target, and its bytes do not count.
    size = 18 if bos else 18 - len("the")
    found = opened_evals["x"](params, 0)
    whole, text = nats[real].sum(), nats[real & ~end].sum()
    bits = 1 / size / math.log(2)
    assert found["x/bits_per_byte"] == pytest.approx(whole * bits, rel=1e-5)
    without = found["x/bits_per_byte_without_end"]
    assert without == pytest.approx(text * bits, rel=1e-5)
    assert found["x/end_nats"] == pytest.approx(nats[end].sum(), rel=1e-5)
    assert found["x/loss"] == found["x/lm_loss"] == pytest.approx(nats[real].mean())


@pytest.mark.slow
def test_a_sampled_loss_is_drawn_by_the_step_and_for_training_alone(tmp_path):
    found = []
    for count in (0, 9):
        model = {"name": "rnn", "d_model": 16, "dropout": 0.0}
        objective = {"name": "causal_lm", "sampled": count}
        config = tiny.config(model=model, objective=objective)
        corpus, program = tiny.program(config, tmp_path)
        steps_of = runs.durations(config, corpus)
        training = runs.open_training(config, corpus, program, steps_of)
        state, batch = training.start(tiny.new(program.model)), tiny.batch(corpus, 8)
        loss = jax.jit(training.loss)
        steps = (state, state, state._replace(step=jnp.int32(1)))
        total, weight = program.metrics(state.params, batch)["lm_loss"]
        found.append(([float(loss(s, batch)) for s in steps], float(total / weight)))
    (whole, measured), (some, measured_too) = found
    assert measured == measured_too == pytest.approx(whole[0], rel=1e-6)
    assert whole == [whole[0]] * 3
    assert some[0] == some[1] != some[2] and some[0] != pytest.approx(whole[0])


def test_a_sampled_loss_has_no_label_smoothing():
    objective = {"name": "causal_lm", "sampled": 9, "label_smoothing": 0.1}
    with pytest.raises(ConfigError, match=r"objective\.label_smoothing: .*sampled=9"):
        runs.check(tiny.config(model=MODEL, objective=objective))


class States(rnn.Model):
    """A model that gives hidden states of two units."""

    def __call__(self, batch, *, train):
        return jnp.array([[[1.0, 2.0], [3.0, 2.0], [0.0, 4.0], [9.0, 9.0]]])

    def token_head(self):
        return jnp.ones((3, 2)), lambda hidden, table: hidden @ table.T


def test_the_regularisers_of_the_states_by_hand():
    """The fourth state has no target, and between the first two a text ends."""
    objective = causal_lm.Objective(activation=2.0, slowness=0.5)
    batch = {
        "targets": jnp.zeros((1, 4), jnp.int32),
        "weights": jnp.array([[1.0, 1.0, 1.0, 0.0]]),
        "segment_ids": jnp.array([[1, 2, 2, 2]]),
    }
    found = objective.loss(States(), batch, train=True)
    assert [*found] == ["lm", "activation", "slowness"]
    total, count = found["activation"]
    assert float(total) == 2.0 * (5 + 13 + 16) / 2 and count == 3
    total, count = found["slowness"]
    assert float(total) == 0.5 * (9 + 4) / 2 and count == 1
    counts = objective.counts(batch)
    assert {name: float(n) for name, n in counts.items()} == {
        name: float(n) for name, (_, n) in found.items()
    }
    assert [*objective.loss(States(), batch, train=False)] == ["lm"]
