"""Hidden Markov models: a reference run of EM, enumeration, caches, padding."""

import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.hmm import PARTS, Model
from tests.models.test_ngram import batch_of

CODEC = types.SimpleNamespace(vocab_size=6, pad_id=0, bos_id=1, eos_id=2)
CORPUS = types.SimpleNamespace(codec=CODEC)


MODEL = Model(vocab_size=6, states=3, restarts=2, trials=2, smoothing=0.0)
count = jax.jit(MODEL.statistics)


def a_pass(params, memory, batch):
    return MODEL.improve(params, memory, count(params, batch))


@jax.jit
def one_model(params, batch):
    return MODEL.improve(params, {"passes": 0}, MODEL.statistics(params, batch))


def asked(params, batch):
    """Log-probabilities of the targets and logits (B, T, V) of a batch."""

    @jax.jit
    def run(params, batch):
        def call(m, b):
            hidden = m(b, train=False)
            return m.log_prob(hidden, b["targets"]), m.logits(hidden), m.best(hidden)

        return MODEL.apply({"params": params}, batch, method=call)

    return run(params, batch)


def logs(values):
    with np.errstate(divide="ignore"):
        return jnp.log(jnp.asarray(values, jnp.float32))[None]


def test_the_log_likelihoods_of_a_reference(test_data):
    """As hmmlearn finds them, without a token that opens or ends the sequences."""
    file = test_data("ref_crf_hmm_pcfg") / "hmm_toy.json"
    reference = json.loads(file.read_text())
    begin = reference["start"]
    params = {
        "vocabulary": np.ones(5, bool),
        "log_likelihood": jnp.zeros(1),
        "start": logs(begin["pi"]),
        "transitions": logs(begin["A"]),
        "emissions": logs(np.transpose(begin["B"])),
    }
    # Each begins with a token outside the vocabulary, as bos is, which is not drawn.
    params["vocabulary"] = np.arange(6) < 5
    params["emissions"] = jnp.pad(
        params["emissions"], ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf
    )
    batch = batch_of([[5, *x] for x in reference["sequences"]], 20)
    found = []
    for _ in range(101):
        params, _, measured = one_model(params, batch)
        found.append(float(measured["log_likelihood"]))
    for row in reference["iterations"]:
        wanted = row["log_likelihood"]
        assert found[row["iterations"]] == pytest.approx(wanted, rel=2e-6)
    assert (np.diff(found) > -1e-4).all()
    for name, wanted in (("transitions", "A"), ("emissions", "B")):
        shares = np.exp(params[name][0])
        wanted = np.array(reference["iterations"][-1][wanted])
        wanted = np.pad(wanted.T, ((0, 1), (0, 0))) if name == "emissions" else wanted
        np.testing.assert_allclose(shares, wanted, atol=2e-3)


@pytest.fixture(scope="module")
def started():
    return MODEL.start(CORPUS)


TEXTS = [[1, 3, 4, 5, 2], [4, 4, 2], [1, 5, 2], [3, 5]]


def enumerated(params, text):
    """log p(text) by all sequences of states; a bos is not drawn."""
    start, moves, drawn = (np.exp(np.asarray(params[x][0], np.float64)) for x in PARTS)
    words, total = [w for w in text if w != 1], 0.0
    for states in itertools.product(range(len(start)), repeat=len(words)):
        p = start[states[0]]
        for i, (state, word) in enumerate(zip(states, words)):
            p *= (moves[states[i - 1], state] if i else 1) * drawn[word, state]
        total += p
    return np.log(total)


def packed(rows, length):
    """Several texts in each row, as objectives pack them."""
    names = ("inputs", "positions", "segment_ids", "targets", "weights")
    batch = {n: np.zeros((len(rows), length), np.int32) for n in names}
    batch["weights"] = batch["weights"].astype(np.float32)
    for row, texts in enumerate(rows):
        at = 0
        for number, text in enumerate(texts, start=1):
            size = len(text) - 1
            for name, values in zip(
                names, (text[:-1], np.arange(size), number, text[1:], 1)
            ):
                batch[name][row, at : at + size] = values
            at += size
    return batch


def test_a_text_has_the_likelihood_of_all_its_sequences_of_states(started):
    params, _ = started
    alone, together = batch_of(TEXTS, 8), packed([TEXTS[:2], TEXTS[2:]], 8)
    wanted = [enumerated(params, text) for text in TEXTS]
    for batch in (alone, together):
        found = count(params, batch)
        assert found["log_likelihood"][0] == pytest.approx(sum(wanted), rel=1e-5)
        assert found["tokens"] == sum(len(text) - (text[0] == 1) for text in TEXTS)
        # Each token is drawn once, each state but the first of a text follows one.
        counts = jax.tree.map(lambda x: np.asarray(x[0]).sum(), found["counts"])
        assert counts["emissions"] == pytest.approx(float(found["tokens"]), rel=1e-5)
        assert counts["start"] == pytest.approx(len(TEXTS), rel=1e-5)
        moves = float(found["tokens"]) - len(TEXTS)
        assert counts["transitions"] == pytest.approx(moves, rel=1e-5)
    # A row whose weights are all 0 changes nothing.
    more = {n: np.concatenate([x, x[:1] * (n != "weights")]) for n, x in alone.items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        count(params, alone),
        count(params, more),
    )
    # What the model predicts, token by token, is the likelihood too.
    params = jax.tree.map(jnp.asarray, params)
    for batch in (alone, together):
        scores, logits, best = asked(params, jax.tree.map(jnp.asarray, batch))
        given = [0 if t[0] == 1 else enumerated(params, t[:1]) for t in TEXTS]
        total = float(scores[batch["weights"] > 0].sum())
        assert total == pytest.approx(sum(wanted) - sum(given), rel=1e-5)
        np.testing.assert_allclose(np.exp(logits).sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(best, logits.argmax(axis=-1))


def test_restarts_rise_and_the_best_remains(started):
    params, memory = started
    batch, found = batch_of(TEXTS * 3, 8), []
    for number in range(5):
        params, memory, measured = a_pass(params, memory, batch)
        found.append(np.asarray(params["log_likelihood"]))
        assert measured["models"] == (2 if number < 2 else 1)
    assert (np.diff(found[:2], axis=0) > 0).all()
    # The last pass with both measures both; the better one goes on.
    last = [f.max() for f in found[1:]]
    assert (np.diff(last) > -1e-5).all() and last[-1] > last[0]
    for name, axis in zip(PARTS, (1, 2, 1)):
        np.testing.assert_allclose(np.exp(params[name]).sum(axis=axis), 1, rtol=1e-5)
    assert (np.exp(params["emissions"])[:, :2] == 0).all()  # padding and bos


def test_a_text_read_in_parts(started):
    params, _ = started
    params = jax.tree.map(jnp.asarray, params)
    batch = jax.tree.map(
        jnp.asarray, batch_of([[1, 3, 4, 5, 4, 2], [4, 4, 3, 3, 5, 2]], 5)
    )

    def call(m):
        whole, cache, parts = m(batch, train=False), m.make_cache(2, 5), []
        for cut in (slice(0, 2), slice(2, 3), slice(3, 5)):
            piece = {n: jnp.pad(x[:, cut], ((0, 0), (1, 0))) for n, x in batch.items()}
            hidden, cache = m.extend(piece, cache)
            parts.append(hidden[:, 1:])
        return whole, jnp.concatenate(parts, axis=1)

    whole, parts = jax.jit(lambda p: MODEL.apply({"params": p}, method=call))(params)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
