"""Evaluators of a stream against loops over the text written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluations
from lm import run as runs
from lm.errors import ConfigError
from lm.evaluators import dynamic
from tests import tiny

LENGTH, WINDOW, ROWS = 8, 7, 9
TEXTS = {"sources": [{"name": "memory", "items": tiny.documents(9, seed=1)}]}
STREAM = TEXTS | {"order": "stream"}
CACHE = {"evaluator": "cache", "window": WINDOW, "batch_size": 1, "limit": ROWS}
SGD = {"evaluator": "dynamic", "rule": "sgd", "lr": 0.3, "decay": 0.1, "limit": ROWS}
RMS = SGD | {"rule": "rms", "lr": 0.01, "batches": 3, "epsilon": 0.01}


def settings(**evals):
    return tiny.config(
        model={"name": "rnn", "cell": "lstm", "d_model": 16, "init_std": 0.5},
        objective={"name": "causal_lm", "borders": "ignore", "bos": False},
        seq_len=LENGTH,
        evals={name: {"data": STREAM} | each for name, each in evals.items()},
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The figures of each evaluation, and the segments, model and parameters."""
    workdir = tmp_path_factory.mktemp("run")
    config = settings(
        plain={"evaluator": "mean", "batch_size": 1, "limit": ROWS},
        cache=CACHE | {"theta": (0.0, 0.7), "weight": (0.0, 0.4)},
        few=CACHE | {"theta": (0.7,), "weight": (0.4,), "window": 10_000},
        sgd=SGD,
        still=SGD | {"lr": 0.0},
        rms=RMS,
    )
    runs.check(config)
    corpus, program = tiny.program(config, workdir)
    params = program.init(jax.random.key(0))
    evals = evaluations.open_evaluators(config, workdir, corpus, program)
    found = {}
    for evaluate in evals.values():
        found |= evaluate(params, 0)
    batches = list(evals["plain"].examples.batches())
    return found, batches, program.model, params, corpus


def read(model, params, batches):
    """States, log-probabilities and words of the whole text."""
    whole = {name: np.concatenate([b[name] for b in batches], 1) for name in batches[0]}
    whole = jax.tree.map(jnp.asarray, whole)

    def states(model, batch):
        hidden = model(batch, train=False)
        return hidden, jax.nn.log_softmax(model.logits(hidden))

    hidden, scores = model.apply({"params": params}, whole, method=states)
    words = np.asarray(whole["targets"])[0]
    return np.asarray(hidden[0]), np.asarray(scores[0])[range(len(words)), words], words


def with_cache(hidden, own, words, window, theta, weight):
    losses = []
    for t in range(len(words)):
        past = range(max(0, t - window), t)
        share = [math.exp(theta * float(hidden[t] @ hidden[i])) for i in past]
        p = math.exp(own[t])
        if past:
            hit = sum(s for s, i in zip(share, past) if words[i] == words[t])
            p = (1 - weight) * p + weight * hit / sum(share)
        losses.append(-math.log(p))
    return np.mean(losses)


@pytest.mark.slow
def test_the_cache_is_the_one_written_out(opened):
    found, batches, model, params, _ = opened
    text = read(model, params, batches)
    expected = {
        (theta, weight): with_cache(*text, WINDOW, theta, weight)
        for theta in (0.0, 0.7)
        for weight in (0.0, 0.4)
    }
    best = min(expected, key=expected.get)
    assert (found["cache/theta"], found["cache/weight"]) == best or best[1] == 0.0
    assert found["cache/loss"] == pytest.approx(expected[best], rel=1e-5)
    plain = math.exp(expected[0.0, 0.0])
    assert found["cache/plain_perplexity"] == pytest.approx(plain, rel=1e-5)
    assert found["cache/plain_perplexity"] == pytest.approx(found["plain/perplexity"])
    # All of the text is in the window.
    whole = with_cache(*text, 10_000, 0.7, 0.4)
    assert found["few/loss"] == pytest.approx(whole, rel=1e-5)
    assert found["few/perplexity"] == pytest.approx(math.exp(whole), rel=1e-5)
    assert found["few/targets"] == ROWS * LENGTH
    assert found["few/loss_low"] < found["few/loss"] < found["few/loss_high"]
    none = found["cache/perplexity_low"], found["cache/perplexity_high"]
    assert (
        none
        == pytest.approx(
            (found["plain/perplexity_low"], found["plain/perplexity_high"])
        )
        or found["cache/weight"]
    )


def bounds(losses):
    """The bootstrap interval of the mean of segments with equally many targets."""
    rng, size = np.random.default_rng(0), len(losses)
    means = [
        np.mean(np.take(losses, rng.integers(size, size=size))) for _ in range(1000)
    ]
    return pytest.approx([*np.quantile(means, [0.025, 0.975])], rel=1e-4)


def segments(model, params, batches, move):
    """The mean loss of a model that is moved after each segment."""

    @jax.jit
    def loss(params, carry, batch):
        def nats(model, batch):
            scores = jax.nn.log_softmax(model.logits(model(batch, train=False)))
            chosen = batch["targets"][..., None]
            return -jnp.take_along_axis(scores, chosen, axis=-1).mean()

        variables = {"params": params, "carry": carry}
        value, left = model.apply(variables, batch, method=nats, mutable=["carry"])
        return value, left["carry"]

    carry, losses = model.make_carry(1), []
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for batch in batches:
        (value, carry), grads = gradient(params, carry, batch)
        losses.append(float(value))
        params = move(params, grads)
    return losses


@pytest.mark.slow
def test_dynamic_evaluation_by_gradient_descent_written_out(opened):
    found, batches, model, first, _ = opened

    def move(params, grads):
        return jax.tree.map(
            lambda p, g, p0: 0.9 * p + 0.1 * p0 - 0.3 * g, params, grads, first
        )

    losses = segments(model, first, batches, move)
    assert found["sgd/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    ends = bounds(losses)
    assert [found["sgd/loss_low"], found["sgd/loss_high"]] == ends
    plain = segments(model, first, batches, lambda params, grads: params)
    assert [found["plain/loss_low"], found["plain/loss_high"]] == bounds(plain)
    assert [found["still/loss_low"], found["still/loss_high"]] == bounds(plain)
    assert found["sgd/targets"] == ROWS * LENGTH
    assert abs(found["sgd/loss"] - found["plain/lm_loss"]) > 1e-3
    # Without a step the text is read as it is; and the parameters were left so.
    assert found["still/loss"] == pytest.approx(found["plain/lm_loss"], rel=1e-5)
    assert found["rms/loss"] != pytest.approx(found["still/loss"], rel=1e-3)


def test_the_update_by_root_mean_squares_by_hand():
    rule = dynamic.Evaluator(lr=0.5, decay=0.2, epsilon=1.0)
    tree = [jnp.array([[1.0, 2.0]]), jnp.array([3.0])]
    grads = [jnp.array([[4.0, -6.0]]), jnp.array([10.0])]
    first = [jnp.array([[0.0, 4.0]]), jnp.array([1.0])]
    roots = [jnp.array([[1.0, 2.0]]), jnp.array([12.0])]  # of mean 5
    found = rule.update(tree, grads, first, roots)
    # p - 0.5 g / (r + 1) + min(0.2 r / 5, 1) (p0 - p)
    np.testing.assert_allclose(found[0], [[1 - 1 - 0.04, 2 + 1 + 0.08 * 2]], rtol=1e-6)
    np.testing.assert_allclose(found[1], [3 - 5 / 13 - 0.48 * 2], rtol=1e-6)


def test_they_ask_for_a_stream_read_in_order():
    for section in (CACHE, SGD):
        with pytest.raises(ConfigError, match=r"evals\.a\.data\.order: .*stream"):
            runs.check(settings(a=section | {"data": TEXTS}))
    with pytest.raises(ConfigError, match=r"evals\.a\.batch_size: found 3"):
        runs.check(settings(a=SGD | {"batch_size": 3}))
