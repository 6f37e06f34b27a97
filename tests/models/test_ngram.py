"""n-grams: probabilities by hand and by a loop over dictionaries, caches, bad data."""

import collections
import functools
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding import loop
from lm.errors import DataError
from lm.models.ngram import Model
from lm.objectives import causal_lm
from lm.ops import ngrams

WORDS = 5  # ids 0 (padding) and 1 (bos) are never predicted, 2 is the end
CODEC = types.SimpleNamespace(vocab_size=WORDS, pad_id=0, bos_id=1, eos_id=2)
CORPUS = types.SimpleNamespace(codec=CODEC)


def batch_of(texts, length):
    """Rows of one text each, padded on the right, each token but the first a target."""
    shape = (len(texts), length)
    names = ("inputs", "positions", "segment_ids", "targets")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    batch["weights"] = np.zeros(shape, np.float32)
    for row, text in enumerate(texts):
        size = len(text) - 1
        batch["inputs"][row, :size], batch["targets"][row, :size] = text[:-1], text[1:]
        batch["positions"][row, :size] = np.arange(size)
        batch["segment_ids"][row, :size] = 1
        batch["weights"][row, :size] = 1
    return batch


def fitted(batches, **fields):
    model = Model(vocab_size=WORDS, **fields)
    params, memory = model.start(CORPUS)
    total = model.statistics(params, batches[0])
    for batch in batches[1:]:
        total = model.merge(total, model.statistics(params, batch))
    params, _, measured = model.improve(params, memory, total)
    return model, jax.tree.map(jnp.asarray, params), measured


def log_probabilities(model, params, batch):
    """(B, T, V) of the next token after each position."""

    @jax.jit
    def run(params, batch):
        call = lambda m, b: m.logits(m(b, train=False))  # noqa: E731
        return model.apply({"params": params}, batch, method=call)

    return np.asarray(run(params, batch))


def written_out(texts, order, k):
    """{context: {word: probability}} by dictionaries of tuples; unseen under None."""
    counts = collections.defaultdict(collections.Counter)
    for text in texts:
        padded = [WORDS] * (order - 1) + list(text)
        for end in range(order, len(padded)):
            history = tuple(padded[end - order + 1 : end])
            counts[history][padded[end]] += 1
    words = [w for w in range(WORDS) if w not in (CODEC.pad_id, CODEC.bos_id)]
    out = {None: dict.fromkeys(words, 1 / len(words))}
    for history, found in counts.items():
        bottom = sum(found.values()) + k * len(words)
        out[history] = {w: (found[w] + k) / bottom for w in words}
    return out


def random_texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [1, *rng.integers(3, WORDS, rng.integers(1, 9)).tolist(), 2]
        for _ in range(count)
    ]


def test_a_bigram_by_hand():
    """<s> a b a </s>: a follows <s>, b and </s> follow a once each, a follows b."""
    text = [1, 3, 4, 3, 2]
    batch = batch_of([text], 6)
    model, params, measured = fitted([batch], order=2, k=0.5)
    found = np.exp(log_probabilities(model, params, batch))[0]
    after_bos = [0, 0, 0.5 / 2.5, 1.5 / 2.5, 0.5 / 2.5]
    after_a = [0, 0, 1.5 / 3.5, 0.5 / 3.5, 1.5 / 3.5]
    after_b = [0, 0, 0.5 / 2.5, 1.5 / 2.5, 0.5 / 2.5]
    np.testing.assert_allclose(found[:4], [after_bos, after_a, after_b, after_a], 1e-6)
    loss = -math.log(1.5 / 2.5 * 1.5 / 3.5 * 1.5 / 2.5 * 1.5 / 3.5) / 4
    assert measured["loss"] == pytest.approx(loss, rel=1e-6)
    assert (measured["tokens"], measured["ngrams"], measured["contexts"]) == (4, 4, 3)


@pytest.mark.parametrize("order", range(1, 7))
def test_probabilities_are_those_of_a_loop_and_sum_to_one(order):
    texts, k, unseen = random_texts(12), 0.1, 0
    batches = [batch_of(texts[i : i + 5], 12) for i in range(0, 12, 5)]
    model, params, _ = fitted(batches, order=order, k=k)
    asked = random_texts(20, seed=1)
    found = log_probabilities(model, params, batch_of(asked, 12))
    wanted = written_out(texts, order, k)
    for row, text in enumerate(asked):
        padded = [WORDS] * (order - 1) + text
        for t in range(len(text) - 1):
            history = tuple(padded[t + 1 : t + order])
            expected = wanted.get(history, wanted[None])
            unseen += history not in wanted
            probabilities = np.exp(found[row, t])
            assert probabilities.sum() == pytest.approx(1, abs=1e-6)
            for word, value in expected.items():
                assert probabilities[word] == pytest.approx(value, rel=2e-6)
    assert unseen or order < 4  # Contexts that were never seen are among them.


def test_a_text_without_bos_has_its_first_token_as_context():
    texts = [text[1:] for text in random_texts(12)]
    model, params, _ = fitted([batch_of(texts, 12)], order=3, k=0.1)
    found = log_probabilities(model, params, batch_of(texts, 12))
    wanted = written_out(texts, 3, 0.1)
    for row, text in enumerate(texts):
        for t in range(len(text) - 1):
            expected = wanted[tuple([WORDS, WORDS, *text][t + 1 : t + 3])]
            for word, value in expected.items():
                assert math.exp(found[row, t, word]) == pytest.approx(value, rel=2e-6)


def test_order_one_is_the_unigram_distribution():
    texts = random_texts(40)
    batch = batch_of(texts, 12)
    model, params, _ = fitted([batch], order=1, k=1.0)
    found = np.exp(log_probabilities(model, params, batch_of(random_texts(3, 2), 12)))
    counts = np.bincount(list(itertools.chain(*(t[1:] for t in texts))), minlength=5)
    expected = np.where(np.arange(WORDS) < 2, 0, counts + 1.0)
    expected /= expected.sum()
    np.testing.assert_allclose(
        found, np.broadcast_to(expected, found.shape), rtol=1e-6, atol=1e-8
    )


def test_more_continuations_than_are_written_at_a_time(monkeypatch):
    monkeypatch.setattr(ngrams, "CHUNK", 3)
    texts = random_texts(30)
    model, params, _ = fitted([batch_of(texts, 12)], order=2, k=0.1)
    found = log_probabilities(model, params, batch_of(texts, 12))
    monkeypatch.undo()
    whole = log_probabilities(model, params, batch_of(texts, 12))
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("smoothing", ["kneser_ney", "witten_bell", "stupid_backoff"])
def test_a_target_alone_has_the_probability_of_all_logits(smoothing, order):
    options = {"order": order, "smoothing": smoothing, "discount_fallback": True}
    model, params, _ = fitted([batch_of(random_texts(30), 12)], **options)
    batch = batch_of(random_texts(9, seed=1), 12)
    objective = causal_lm.Objective()

    def ask(method):
        on_device = jax.tree.map(jnp.asarray, batch)
        call = lambda m: method(m, on_device)  # noqa: E731
        return model.apply({"params": params}, method=call)

    logits = log_probabilities(model, params, batch)
    np.testing.assert_allclose(np.exp(logits).sum(axis=-1), 1, rtol=1e-5)
    told = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    real = batch["weights"] > 0
    scores = np.asarray(ask(objective.score)[0])
    np.testing.assert_allclose(scores[real], told[real], rtol=1e-6)
    found = ask(objective.metrics)
    assert float(found["lm_loss"][0]) == pytest.approx(-told[real].sum(), rel=1e-6)
    right = (logits.argmax(axis=-1) == batch["targets"])[real].sum()
    assert found["lm_accuracy"] == (right, real.sum())
    guesses = ask(objective.predict)["tokens"]
    np.testing.assert_array_equal(guesses, logits.argmax(axis=-1))


def test_a_text_within_a_row_begins_at_its_bos():
    """What stands before bos is no context, nor does it change a count."""
    texts = random_texts(30)
    options = {"order": 3, "smoothing": "kneser_ney", "discount_fallback": True}
    _, apart, _ = fitted([batch_of(texts, 12)], **options)
    joined = [token for text in texts for token in text]
    row = batch_of([joined], len(joined))
    row["weights"] *= row["targets"] != 1
    _, together, _ = fitted([row], **options)
    jax.tree.map(np.testing.assert_array_equal, apart, together)


def test_packed_rows_are_rows_apart():
    one, other = [1, 3, 4, 4, 2], [1, 4, 3, 2]
    model, params, _ = fitted([batch_of(random_texts(30), 12)], order=3, k=0.1)
    packed = batch_of([one, other], 12)
    row = {
        name: np.concatenate([packed[name][0, :4], packed[name][1, :3]])[None]
        for name in packed
    }
    row["segment_ids"] = np.array([[1] * 4 + [2] * 3])
    apart = log_probabilities(model, params, packed)
    together = log_probabilities(model, params, row)[0]
    np.testing.assert_array_equal(
        together, np.concatenate([apart[0, :4], apart[1, :3]])
    )


def test_a_text_read_token_by_token_after_a_padded_prompt():
    model, params, _ = fitted([batch_of(random_texts(30), 12)], order=4, k=0.1)
    text = [1, 3, 4, 3, 3, 4, 2]
    whole = log_probabilities(model, params, batch_of([text], 6))[0]
    padding = 3
    prompt = {
        "inputs": np.array([[0] * padding + text[:2]], np.int32),
        "positions": np.array([[0] * padding + [0, 1]], np.int32),
        "segment_ids": np.array([[0] * padding + [1, 1]], np.int32),
    }

    @jax.jit
    def run(batch, cache):
        def extend(m):
            hidden, left = m.extend(batch, cache)
            return m.logits(hidden[:, -1]), left

        return model.apply({"params": params}, method=extend)

    cache = model.apply({}, 1, 0, method="make_cache")
    found, cache = run(prompt, cache)
    np.testing.assert_array_equal(found[0], whole[1])
    for t in range(2, 6):
        one = {
            "inputs": np.array([[text[t]]], np.int32),
            "positions": np.array([[t]], np.int32),
            "segment_ids": np.ones((1, 1), np.int32),
        }
        found, cache = run(one, cache)
        np.testing.assert_array_equal(found[0], whole[t])


def continuation(table, order, text, word):
    """The log-probability of a word after a text."""
    history = tuple(([WORDS] * order + list(text))[len(text) + 1 :])
    return math.log(table.get(history, table[None])[word])


@pytest.fixture(scope="module")
def trigrams():
    """A decoder of trigrams, and the same distribution written out."""
    texts = random_texts(30, seed=3)
    model, params, _ = fitted([batch_of(texts, 12)], order=3, k=0.2)
    decoder = loop.with_params(loop.make_decoder(model, CODEC), params)
    return decoder, written_out(texts, 3, 0.2)


def test_greedy_answers_are_the_most_probable_words(trigrams):
    decoder, table = trigrams
    prompts = [[1, 3], [1, 4, 4, 3, 3], [1]]
    found = loop.answer(decoder, prompts, loop.Settings(max_tokens=7))
    for prompt, [answer] in zip(prompts, found, strict=True):
        text = list(prompt)
        for _ in range(7):
            scores = {w: continuation(table, 3, text, w) for w in (2, 3, 4)}
            text.append(max(scores, key=scores.get))
            if text[-1] == 2:
                break
        said = text[len(prompt) :]
        assert answer.ids == [word for word in said if word != 2]


def test_draws_have_the_frequencies_of_the_distribution(trigrams):
    decoder, table = trigrams
    count, text = 3000, [1, 3, 4]
    settings = loop.Settings(max_tokens=1, temperature=1.0, seed=5)
    found = loop.answer(decoder, [text] * count, settings)
    drawn = np.array([answer.ids[0] if answer.ids else 2 for [answer] in found])
    for word in (2, 3, 4):
        p = math.exp(continuation(table, 3, text, word))
        error = math.sqrt(p * (1 - p) / count)
        assert abs((drawn == word).mean() - p) < 4 * error
        assert p > 0.05


def test_a_wide_search_finds_the_best_of_all_answers(trigrams):
    decoder, table = trigrams
    prompt, most = [1, 4, 3], 3
    scores = {}
    for length in range(1, most + 1):
        for words in itertools.product((2, 3, 4), repeat=length):
            ended = words[-1] == 2 or length == most
            if ended and 2 not in words[:-1]:
                texts = [prompt + list(words[:i]) for i in range(length)]
                each = [continuation(table, 3, t, w) for t, w in zip(texts, words)]
                scores[words] = sum(each)
    settings = loop.Settings(max_tokens=most, beams=9, n_best=4, length_penalty=0.0)
    [answers] = loop.answer(decoder, [prompt], settings)
    best = sorted(scores, key=scores.get, reverse=True)[:4]
    assert [a.ids for a in answers] == [[w for w in b if w != 2] for b in best]
    np.testing.assert_allclose(
        [a.score for a in answers], [scores[b] for b in best], 1e-5
    )


@pytest.mark.parametrize(("size", "order"), [(2, 6), (300, 4), (33280, 5), (2**31, 6)])
def test_packed_keys_keep_the_order_of_the_ngrams(size, order):
    rng = np.random.default_rng(0)
    grams = rng.integers(0, size, (300, order))
    grams[150:] = grams[:150]
    grams[100:150, :-1] = grams[0, :-1]
    keys = ngrams.pack(grams, size)
    half = ngrams.tally(keys[:200]), ngrams.tally(keys[200:])
    table = ngrams.merge(*half)
    expected, counts = np.unique(grams, axis=0, return_counts=True)
    np.testing.assert_array_equal(ngrams.unpack(table.keys, order, size), expected)
    np.testing.assert_array_equal(table.counts, counts)
    trie = jax.tree.map(jnp.asarray, ngrams.build_trie(expected.astype(np.int32)))
    found = ngrams.find(trie, jnp.asarray(expected, jnp.int32))
    np.testing.assert_array_equal(found, np.arange(len(expected)))


@pytest.mark.parametrize(("size", "order"), [(40, 3), (33280, 5), (2**31, 6)])
def test_counts_merged_on_disk_are_those_merged_in_memory(size, order):
    rng = np.random.default_rng(1)
    whole = rng.integers(0, min(size, 9), (4000, order)) * (size // 9)
    tables = [ngrams.tally(ngrams.pack(part, size)) for part in np.split(whole, 8)]
    kept = functools.reduce(ngrams.merge, tables)
    for limit in (64.0, 1e4, 1e6):
        found = functools.reduce(lambda a, b: ngrams.merge(a, b, limit), tables)
        assert isinstance(found.keys, np.memmap) == (limit < 1e6)
        np.testing.assert_array_equal(found.keys, kept.keys)
        np.testing.assert_array_equal(found.counts, kept.counts)
    none = ngrams.Table(kept.keys[:0], kept.counts[:0])
    again = ngrams.merge(none, kept, 1e3)
    np.testing.assert_array_equal(again.counts, kept.counts)


def test_a_fit_with_little_memory_gives_the_same_parameters():
    batches = [batch_of(random_texts(9, seed=n), 12) for n in range(6)]
    options = {"order": 3, "smoothing": "kneser_ney", "discount_fallback": True}
    _, wide, _ = fitted(batches, **options)
    _, narrow, _ = fitted(batches, memory=0.001, **options)
    jax.tree.map(np.testing.assert_array_equal, wide, narrow)


def test_nothing_to_count_and_a_target_that_is_no_word():
    batch = batch_of(random_texts(3), 12)
    empty = batch | {"weights": batch["weights"] * 0}
    with pytest.raises(DataError, match="0 tokens to predict"):
        fitted([empty])
    padding = batch | {"targets": batch["targets"] * 0}
    with pytest.raises(DataError, match="token 0"):
        fitted([padding])
