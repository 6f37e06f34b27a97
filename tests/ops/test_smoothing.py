"""Smoothing of n-grams: a written-out Kneser-Ney, sums to one, KenLM's own files."""

import collections
import gzip
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import DataError
from lm.ops import backoff, ngrams, smoothing
from tests import tiny

METHODS = ("kneser_ney", "witten_bell", "stupid_backoff")
UNK, BOS, EOS = 0, 1, 2


def texts_of(count, words, seed=0):
    """Texts whose words are of very different frequency, so that discounts exist."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, words + 1) ** 1.3
    return [
        [BOS, *(3 + rng.choice(words, rng.integers(0, 9), p=p / p.sum())), EOS]
        for _ in range(count)
    ]


def counted(texts, order, size):
    """Distinct n-grams of the highest order, preceded by the symbol `size`."""
    rows = [
        padded[end - order + 1 : end + 1]
        for padded in ([size] * (order - 1) + list(text) for text in texts)
        for end in range(order, len(padded))
    ]
    table = ngrams.tally(ngrams.pack(np.array(rows, np.int32), size + 1))
    return ngrams.unpack(table.keys, order, size + 1), table.counts


def estimated(method, texts, order, size, **options):
    words = np.arange(size) != BOS
    tree, found = smoothing.estimate(
        method, *counted(texts, order, size), words, **options
    )
    return jax.tree.map(jnp.asarray, tree), found, jnp.asarray(words)


def kneser_ney(texts, order, words):
    """p(word, history) by dictionaries, after Chen and Goodman's formulae."""
    raw = collections.Counter()
    for text in texts:
        for j in range(1, order + 1):
            for end in range(max(j, 2), len(text) + 1):
                raw[tuple(text[end - j : end])] += 1
    count = {}
    for gram, times in raw.items():
        left = {g[0] for g in raw if len(g) == len(gram) + 1 and g[1:] == gram}
        highest = len(gram) == order or gram[0] == BOS
        count[gram] = times if highest else len(left)
    steps = {}
    for j in range(1, order + 1):
        t = collections.Counter(c for g, c in count.items() if len(g) == j)
        y = t[1] / max(t[1] + 2 * t[2], 1)
        exact = all(t[k] for k in (1, 2, 3))
        found = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3) if exact]
        exact = exact and all(0 <= d <= k for k, d in enumerate(found, 1))
        steps[j] = [0, *(found if exact else (0.5, 1.0, 1.5))]

    def p(history, word):
        if history is None:
            return 1 / words
        own = {g: c for g, c in count.items() if g[:-1] == history}
        lower = p(history[1:] if history else None, word)
        if not own:
            return lower
        step = steps[len(history) + 1]
        total, c = sum(own.values()), count.get((*history, word), 0)
        gamma = sum(step[min(c, 3)] for c in own.values())
        return (c - step[min(c, 3)] + gamma * lower) / total

    return p, steps


@pytest.mark.parametrize("order", tiny.few([1, 2, 3, 4], {1, 3}))
def test_kneser_ney_is_that_of_a_written_out_loop(order):
    size = 16
    texts = texts_of(60, size - 3)
    tree, found, _ = estimated("kneser_ney", texts, order, size, fallback=True)
    p, steps = kneser_ney(texts, order, size - 1)
    for j in range(1, order + 1):
        for k in (1, 2, 3):
            assert found[f"discount_{j}_{k}"] == pytest.approx(steps[j][k], abs=1e-12)
    asked = texts_of(5, size - 3, seed=1)
    for text in asked:
        for end in range(1, len(text)):
            history = tuple(text[:end][-(order - 1) :]) if order > 1 else ()
            padded = [size] * (order - 1 - len(history)) + list(history)
            rows = backoff.find(tree, jnp.array(padded, jnp.int32))
            ours = float(backoff.log_prob(tree, rows, jnp.int32(text[end])))
            assert ours == pytest.approx(math.log(p(history, text[end])), abs=1e-5)


def test_discounts_by_hand():
    """Six words of count 1 1 1 1 2 3 and one of 4: t = 4, 1, 1, 1 and Y = 4 / 6."""
    found = smoothing.discounts(np.array([1, 1, 1, 1, 2, 3, 4]), 1, False)
    y = 4 / 6
    wanted = (1 - 2 * y / 4, 2 - 3 * y, 3 - 4 * y)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_discounts_that_cannot_be_estimated():
    none = np.array([1, 1, 3, 3])
    with pytest.raises(DataError, match=r"no 2-gram of \(adjusted\) count 2.*fallback"):
        smoothing.discounts(none, 2, False)
    out = np.array([1, 2, 3, 3, 3, 3, 4])  # D2 = 2 - 3 / 3 * 4 is below 0.
    with pytest.raises(DataError, match="-2"):
        smoothing.discounts(out, 2, False)
    assert smoothing.discounts(none, 2, True) == (0.5, 1.0, 1.5)


@pytest.mark.parametrize("prune", [(), (0, 1), (0, 0, 3), (0, 9999)])
@pytest.mark.parametrize("method", METHODS)
def test_every_history_sums_to_one(method, prune):
    size, order = 18, 4
    texts = texts_of(80, size - 4)  # one word of the vocabulary is never seen
    tree, _, words = estimated(method, texts, order, size, prune=prune, fallback=True)
    seen, _ = counted(texts, order, size)
    rng = np.random.default_rng(2)
    unseen = rng.integers(0, size + 1, (200, order - 1))
    histories = jnp.asarray(np.concatenate([seen[:200, :-1], unseen]), jnp.int32)
    rows = backoff.find(tree, histories)
    logs = backoff.log_probs(tree, rows, words)
    sums = np.exp(np.asarray(logs, np.float64)).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=2e-6)
    assert np.isneginf(logs[:, BOS]).all()
    targets = jnp.asarray(rng.integers(2, size, len(rows)), jnp.int32)
    alone = backoff.log_prob(tree, rows, targets)
    np.testing.assert_array_equal(alone, logs[np.arange(len(rows)), targets])
    best = backoff.best(tree, rows)
    np.testing.assert_array_equal(best, np.argmax(logs, axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_the_counted_text(method):
    size, order = 18, 3
    texts = texts_of(80, size - 4)
    for prune in ((), (0, 0, 1)):
        tree, found, _ = estimated(
            method, texts, order, size, prune=prune, fallback=True
        )
        total, grams, counts = 0.0, *counted(texts, order, size)
        rows = backoff.find(tree, jnp.asarray(grams[:, :-1]))
        logs = np.asarray(backoff.log_prob(tree, rows, jnp.asarray(grams[:, -1])))
        total = -float(counts @ logs.astype(np.float64)) / counts.sum()
        assert found["loss"] == pytest.approx(total, rel=1e-5)


def test_pruning_counts_occurrences_and_keeps_what_is_frequent():
    size = 18
    texts = texts_of(80, size - 4)
    raw = collections.Counter(
        tuple(text[end - 2 : end]) for text in texts for end in range(2, len(text) + 1)
    )
    _, found, _ = estimated("witten_bell", texts, 3, size, prune=(0, 2))
    assert found["ngrams_2"] == sum(times > 2 for times in raw.values())
    assert found["ngrams_1"] == len({gram[-1] for gram in raw})


def test_stupid_backoff_keeps_the_published_order_of_words():
    texts = [[BOS, 3, 4, EOS], [BOS, 3, 5, EOS], [BOS, 3, 4, EOS], [BOS, 6, EOS]]
    tree, _, words = estimated("stupid_backoff", texts, 2, 8)
    rows = backoff.find(tree, jnp.array([[3]], jnp.int32))
    p = np.exp(backoff.log_probs(tree, rows, words))[0]
    total = 11  # tokens that are predicted
    scores = np.array([0.4 / 7, 0, 4 / total, 3 / total, 0, 0, 1 / total, 0.4 / 7])
    scores[[0, 2, 3, 6, 7]] *= 0.4
    scores[[4, 5]] = 2 / 3, 1 / 3
    np.testing.assert_allclose(p, scores / scores.sum(), rtol=1e-5)


def test_witten_bell_by_hand():
    """After 3: 4 twice and 5 once, so that T = 2 of 5 go to the unigrams."""
    texts = [[BOS, 3, 4, EOS], [BOS, 3, 5, EOS], [BOS, 3, 4, EOS], [BOS, 6, EOS]]
    tree, _, words = estimated("witten_bell", texts, 2, 8)
    rows = backoff.find(tree, jnp.array([[3]], jnp.int32))
    p = np.exp(backoff.log_probs(tree, rows, words))[0]
    counts = np.array([0, 0, 4, 3, 2, 1, 1, 0])
    unigrams = (counts + 5 / 7) / (11 + 5) * (np.arange(8) != BOS)
    expected = (np.array([0, 0, 0, 0, 2, 1, 0, 0]) + 2 * unigrams) / 5
    np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-9)


def test_the_best_word_without_interpolation():
    """A context gives its n-gram less than backing off would: the next one wins."""
    grams = [
        (np.array([[2], [3], [4]]), np.log10([0.5, 0.4, 0.1])),
        (np.array([[4, 2]]), np.log10([0.01])),
    ]
    tree = backoff.make(5, grams, [(np.array([[4]]), np.array([0.2]))])
    rows = backoff.find(tree := jax.tree.map(jnp.asarray, tree), jnp.array([[4], [3]]))
    np.testing.assert_array_equal(backoff.best(tree, rows), [3, 2])


def read_arpa(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        lines = (line.rstrip("\n").split("\t") for line in file)
        return {tuple(p[1].split()): (p[0], *p[2:]) for p in lines if len(p) > 1}


@pytest.mark.parametrize("name", ["toy.arpa", "mid.arpa.gz"])
def test_every_line_of_a_model_of_kenlm(name, test_data):
    place = test_data("ref_kenlm")
    train = place / f"{name.split('.')[0]}.train.txt"
    lines = train.read_text().split("\n")[:-1]
    ids = {"<unk>": UNK, "<s>": BOS, "</s>": EOS}
    for line in lines:
        for word in line.split():
            ids.setdefault(word, len(ids))
    texts = [[BOS, *(ids[w] for w in line.split()), EOS] for line in lines]
    tree, _, _ = estimated("kneser_ney", texts, 3, len(ids))
    grams, backoffs = backoff.unmake(jax.tree.map(np.asarray, tree))
    names, wanted = list(ids), read_arpa(place / name)
    found = [{tuple(g): v for g, v in zip(*pair)} for pair in grams]
    given = [{tuple(g): v for g, v in zip(*pair)} for pair in backoffs]
    seen = 0
    for probabilities, weights in zip(found, [*given, {}]):
        for gram, value in probabilities.items():
            if gram != (BOS,):
                p, *weight = wanted[tuple(names[i] for i in gram)]
                assert value == pytest.approx(float(p), abs=1e-5)
                if weight:
                    assert weights.get(gram, 0) == pytest.approx(
                        float(weight[0]), abs=1e-5
                    )
                seen += 1
    assert seen == len(wanted) - 1
    assert given[0][(BOS,)] == pytest.approx(float(wanted[("<s>",)][1]), abs=1e-5)
