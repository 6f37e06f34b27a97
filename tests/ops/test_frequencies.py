"""Sub-sampling, noise and Huffman codes beside stored figures; hashes of n-grams."""

import json

import numpy as np
import pytest

from lm.ops import frequencies
from lm.ops.subwords import buckets_of, hash_of, ngrams


@pytest.fixture
def words(test_data):
    file = test_data("ref_embeddings") / "tiny_huffman_keep.json"
    return json.loads(file.read_text())


def test_keep_probability_is_the_published_one(words):
    counts = np.asarray([word["count"] for word in words.values()])
    found = frequencies.keep_probability(counts, 1e-3)
    wanted = [min(1, word["keep"]) for word in words.values()]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert (frequencies.keep_probability(counts, 0.0) == 1).all()


def test_noise_is_the_published_table(test_data, words):
    file = test_data("ref_embeddings") / "tiny_cum_table.json"
    counts = np.asarray([word["count"] for word in words.values()])
    table = frequencies.noise_table(counts, 0.75)
    assert table.tolist() == json.loads(file.read_text())
    # A word that does not occur is never drawn, even first or last.
    table = frequencies.noise_table(np.asarray([0, 2, 0, 1, 0]), 1.0)
    drawn = np.searchsorted(table, np.arange(0, frequencies.RANGE, 10**5), "right")
    assert np.isin(drawn, [1, 3]).all()


def test_huffman_code_is_a_shortest_prefix_code(words):
    counts = np.asarray([word["count"] for word in words.values()])
    code = frequencies.huffman(counts)
    lengths = (code.turns >= 0).sum(axis=1)
    assert sum(0.5 ** lengths.astype(float)) == 1  # Kraft
    assert counts @ lengths == 210_164
    assert counts @ lengths == sum(w["count"] * len(w["code"]) for w in words.values())
    # Two words part at a node that both have, so the paths are a tree.
    paths = {
        tuple(zip(nodes[:n].tolist(), turns[:n].tolist()))
        for nodes, turns, n in zip(code.nodes, code.turns, lengths)
    }
    assert len(paths) == len(counts)
    assert code.nodes.max() == len(counts) - 2


def test_hashes_of_ngrams_are_those_of_fasttext(test_data):
    stored = json.loads(
        (test_data("ref_embeddings") / "tiny.fasttext.json").read_text()
    )
    rows = {word: row for row, word in enumerate(stored["words"])}
    for word, (_, ids) in stored["subwords"].items():
        own = [rows[word]] if word in rows else []
        found = [len(rows) + bucket for bucket in buckets_of(word, 3, 5, 500)]
        assert own + found == ids, word
    assert any(ord(c) > 127 for word in stored["subwords"] for c in word)


def test_ngrams_of_a_short_word():
    assert ngrams("a", 3, 6) == ["<a>"]
    assert ngrams("ab", 1, 2) == ["<a", "a", "ab", "b", "b>"]
    assert buckets_of("ab", 3, 6, 0) == ()
    assert hash_of("a") == 0xE40C292C  # the published value of FNV-1a
