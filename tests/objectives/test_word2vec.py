"""word2vec beside written-out loops, hierarchical softmax, and GloVe by hand."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.cooccurrences import Cooccurrences, Pairs, key_of, place_of
from lm.data.neighbours import Neighbours, Texts
from lm.objectives import glove, word2vec
from lm.ops import frequencies

V, D, WINDOW = 11, 5, 2
COUNTS = np.arange(3, V + 3)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def neighbours(**changes):
    given = {
        "spans": 3,
        "span": 4,
        "window": WINDOW,
        "keep": np.ones(V),
        "noise": frequencies.noise_table(COUNTS, 0.75),
        "noise_range": frequencies.RANGE,
        "shared": 6,
    }
    return Neighbours(**given | changes)


TEXTS = [np.asarray([1, 2, 3, 4, 2]), np.asarray([5]), np.asarray([6, 2, 7])]


@pytest.fixture(scope="module")
def drawn():
    example = {"pieces": TEXTS}
    code = frequencies.huffman(COUNTS)
    made = neighbours(nodes=code.nodes, turns=code.turns)
    return made(example, np.random.default_rng(0))


def tables():
    rng = np.random.default_rng(1)
    sizes = {word2vec.EMBED: V, word2vec.OUT: V, word2vec.NODES: V - 1}
    return {path: rng.normal(size=(n, D)) for path, n in sizes.items()}


def loss_and_grads(objective, example):
    """The sums of the terms, and the dense gradients of their sum."""
    arrays = {k: jnp.asarray(v)[None] for k, v in example.items() if k != "pieces"}
    spans = objective.spans(arrays)
    given = {path: jnp.asarray(t, jnp.float32) for path, t in tables().items()}

    @jax.jit
    def total(given):
        touched = objective.touched(spans)
        rows = {use: given[path][ids] for use, (path, ids) in touched.items()}
        terms = objective.terms(rows, spans)
        return sum(pair[0] for pair in terms.values()), terms

    (value, terms), grads = jax.value_and_grad(total, has_aux=True)(given)
    counts = objective.counts(arrays)
    assert {k: float(v[1]) for k, v in terms.items()} == {
        k: float(v) for k, v in counts.items()
    }
    return float(value), grads, float(next(iter(counts.values())))


def windows(example):
    """(centre, its contexts, noise of its span), as the example has drawn them."""
    flat = np.concatenate(TEXTS)
    starts = np.concatenate([np.full(len(t), i) for i, t in enumerate(TEXTS)])
    left, right = example["left"].reshape(-1), example["right"].reshape(-1)
    for t, centre in enumerate(flat):
        near = [u for u in range(t - left[t], t + right[t] + 1) if u != t]
        assert all(starts[u] == starts[t] for u in near)  # None crosses a text.
        yield centre, flat[near], example["negatives"][t // 4]


def test_skipgram_has_the_gradient_of_a_written_out_loop(drawn):
    objective = word2vec.Objective(window=WINDOW, negatives=3, span=4, shared=6)
    value, grads, count = loss_and_grads(objective, drawn)
    source, out = tables()[word2vec.EMBED], tables()[word2vec.OUT]
    wanted = {word2vec.EMBED: 0 * source, word2vec.OUT: 0 * out}
    total = pairs = 0
    for centre, contexts, noise in windows(drawn):
        for context in contexts:
            pairs += 1
            targets = [(centre, 1, 1.0)]
            targets += [(n, 0, 3 / 6) for n in noise if n != centre]
            for target, label, weight in targets:
                p = sigmoid(source[context] @ out[target])
                total -= weight * math.log(p if label else 1 - p)
                error = weight * (p - label)
                wanted[word2vec.EMBED][context] += error * out[target]
                wanted[word2vec.OUT][target] += error * source[context]
    assert count == pairs
    assert value == pytest.approx(total, rel=1e-5)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(grads[path], gradient, atol=1e-5)


def test_cbow_gives_each_context_the_whole_gradient(drawn):
    objective = word2vec.Objective(
        architecture="cbow", window=WINDOW, negatives=3, span=4, shared=6
    )
    value, grads, count = loss_and_grads(objective, drawn)
    source, out = tables()[word2vec.EMBED], tables()[word2vec.OUT]
    wanted = {word2vec.EMBED: 0 * source, word2vec.OUT: 0 * out}
    total = centres = 0
    for centre, contexts, noise in windows(drawn):
        if not len(contexts):
            continue
        centres += 1
        mean, back = source[contexts].mean(axis=0), 0
        targets = [(centre, 1, 1.0)] + [(n, 0, 3 / 6) for n in noise if n != centre]
        for target, label, weight in targets:
            p = sigmoid(mean @ out[target])
            total -= weight * math.log(p if label else 1 - p)
            back += weight * (p - label) * out[target]
            wanted[word2vec.OUT][target] += weight * (p - label) * mean
        for context in contexts:
            wanted[word2vec.EMBED][context] += back
    assert count == centres
    assert value == pytest.approx(total, rel=1e-5)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(grads[path], gradient, atol=1e-5)


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_hierarchical_softmax_sums_to_one(drawn, architecture):
    objective = word2vec.Objective(
        architecture=architecture,
        window=WINDOW,
        negatives=0,
        hierarchical=True,
        span=4,
    )
    value, _, count = loss_and_grads(objective, drawn)
    source, nodes = tables()[word2vec.EMBED], tables()[word2vec.NODES]
    code = frequencies.huffman(COUNTS)

    def log_p(vector):
        """The log-probability of every word."""
        scores = nodes @ vector
        signs = np.where(code.turns == 0, 1, -1)
        each = -np.log1p(np.exp(-signs * scores[code.nodes]))
        return np.where(code.turns >= 0, each, 0).sum(axis=1)

    total = predicted = 0
    for centre, contexts, _ in windows(drawn):
        vectors = source[contexts]
        if architecture == "cbow" and len(contexts):
            vectors = vectors.mean(axis=0, keepdims=True)
        for vector in vectors:
            assert np.exp(log_p(vector)).sum() == pytest.approx(1)
            total -= log_p(vector)[centre]
            predicted += 1
    assert count == predicted
    assert value == pytest.approx(total, rel=1e-5)


def test_words_that_are_kept_and_their_windows():
    many = {"pieces": [np.arange(1, 9)] * 100}
    keep = np.where(np.arange(V) % 2, 1.0, 0.25)
    made = neighbours(spans=200, keep=keep)(many, np.random.default_rng(0))
    flat = made["contexts"][:, WINDOW:-WINDOW][made["pair_weights"] > 0]
    counts = np.bincount(flat, minlength=V)
    assert made["words"] == 800
    assert (counts[1:9:2] == 100).all() and (np.abs(counts[2:9:2] - 25) < 15).all()
    reach = np.maximum(made["left"], made["right"])[made["pair_weights"] > 0]
    assert set(reach) == {1, 2}
    again = neighbours(spans=200, keep=keep)(many, np.random.default_rng(0))
    assert all((again[k] == made[k]).all() for k in made if k != "pieces")


def test_ngrams_of_contexts():
    pieces, ends = np.arange(100, 120), np.cumsum([0, 3, 15, *[0] * (V - 4), 2])
    made = neighbours(pieces=pieces, ends=ends, most_pieces=5)
    found = made({"pieces": TEXTS}, np.random.default_rng(0))
    for word, ids in zip(
        found["contexts"].reshape(-1), found["pieces"].reshape(-1, 5).tolist()
    ):
        if word == 1:
            assert ids == [100, 101, 102, -1, -1]
        elif word == 2:  # One from each fifth.
            assert [(id - 103) // 3 for id in ids] == [0, 1, 2, 3, 4]
        else:
            assert ids == [-1] * 5


# ── GloVe ───────────────────────────────────────────────────────────────────────────


class Rows:
    """Takes what a layout writes."""

    def __init__(self):
        self.rows, self.counts, self.record = [], {"unknown texts_left out": 0}, 0

    def row(self, pieces, **values):
        self.rows.append((pieces, values))


def count(texts, window, memory):
    """The counts of `Cooccurrences` as {(i, j): X}."""
    layout = Cooccurrences(3, window, 20, (0,), memory=memory)
    out = Rows()
    layout.write(iter([(None, (text,)) for text in texts]), out)
    assert all(len(pieces[0]) == 3 for pieces, _ in out.rows[:-1])
    return {
        (i, j): x
        for (one, other), values in out.rows
        for i, j, x in zip(one, other, values["near"].tolist())
    }


def test_counts_of_three_words_by_hand():
    assert count([[1, 2, 3], [3, 0, 1]], 2, 1000) == {
        **{(1, 2): 1.0, (2, 1): 1.0, (2, 3): 1.0, (3, 2): 1.0},
        **{(1, 3): 1.5, (3, 1): 1.5},
    }


def test_counts_do_not_depend_on_memory():
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 20, size=n).tolist() for n in rng.integers(1, 40, 30)]
    whole, parts = (count(texts, 4, memory) for memory in (10**6, 64))
    assert whole.keys() == parts.keys()
    assert all(whole[pair] == pytest.approx(parts[pair], rel=1e-6) for pair in whole)
    assert all(whole[i, j] == pytest.approx(whole[j, i]) for i, j in whole)
    keys = rng.integers(0, 2**63, 1000).astype(np.uint64)
    assert (key_of(place_of(keys)) == keys).all()
    assert [*whole] != sorted(whole)  # They are shuffled.


def test_the_loss_of_three_words_by_hand():
    objective = glove.Objective(x_max=10.0, span=2)
    example = Pairs(2)(
        {"pieces": [np.asarray([1]), np.asarray([2])], "near": np.float32([5.0])}, None
    )
    batch = {k: jnp.asarray(v)[None] for k, v in example.items() if k != "pieces"}
    spans = objective.spans(batch)
    rows = {"word": jnp.full((1, 2, 2), 0.5), "context": jnp.full((1, 2, 2), 2.0)}
    rows |= {"word_bias": jnp.full((1, 2), 0.1), "context_bias": jnp.full((1, 2), 0.2)}
    total, pairs = objective.terms(rows, spans)["pairs"]
    wanted = 0.5 * (5 / 10) ** 0.75 * (2.0 + 0.3 - math.log(5)) ** 2
    assert pairs == 1 and float(total) == pytest.approx(wanted, rel=1e-6)


def test_loss_and_gradient_of_the_stored_toy(test_data):
    file = test_data("ref_embeddings") / "glove_toy.json"
    toy = json.loads(file.read_text())
    counts = np.asarray(toy["X"])
    one, other = np.nonzero(counts)
    spans = {
        "one": jnp.asarray(one)[None],
        "other": jnp.asarray(other)[None],
        "near": jnp.asarray(counts[one, other], jnp.float32)[None],
        "weights": jnp.ones((1, len(one))),
    }
    objective = glove.Objective(x_max=toy.get("x_max", 100.0), span=len(one))
    given = {
        "word": toy["W"],
        "context": toy["C"],
        "word_bias": toy["bw"],
        "context_bias": toy["bc"],
    }
    given = {use: jnp.asarray(table, jnp.float32) for use, table in given.items()}

    def total(given):
        uses = objective.touched(spans)
        rows = {use: given[use][ids] for use, (_, ids) in uses.items()}
        return objective.terms(rows, spans)["pairs"][0]

    value, grads = jax.value_and_grad(total)(given)
    assert float(value) == pytest.approx(toy["loss"], rel=1e-5)
    np.testing.assert_allclose(grads["word"], toy["dW"], atol=1e-6)
    np.testing.assert_allclose(grads["word_bias"], toy["dbw"], atol=1e-5)


def test_rows_of_texts():
    out = Rows()
    texts = [[1, 0, 2], [0], [3, 4, 5, 6, 7], [8]]
    Texts(4, (0,), True).write(iter([(None, (t,)) for t in texts]), out)
    pieces = [row for row, _ in out.rows]
    assert pieces == [[[1, 2]], [[3, 4, 5, 6]], [[7], [8]]]
    assert out.counts["unknown texts_left out"] == 1
