"""Charts against all trees of a sentence, written out; a reference grammar."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.formats import grammar as formats
from lm.ops import cky

S, T = 4, 4


def random_grammar(seed=0):
    """A grammar whose rules are some of all, with weights of any sum."""
    rng = np.random.default_rng(seed)
    every = [*itertools.product(range(S), repeat=3)]
    chosen = sorted(rng.choice(len(every), 24, replace=False))
    parent, left, right = (
        jnp.asarray(x, jnp.int32) for x in zip(*(every[i] for i in chosen))
    )
    rules = cky.Rules(
        parent, left, right, jnp.asarray(rng.normal(size=24), jnp.float32)
    )
    start = jnp.asarray(rng.normal(size=S), jnp.float32).at[1].set(-jnp.inf)
    words = rng.normal(size=(S, 3, T)).astype(np.float32)
    words[rng.random(words.shape) < 0.3] = -np.inf
    return rules, start, jnp.asarray(words), jnp.asarray([T, 3, 1])


def trees(rules, words, row, symbol, start, end):
    """Yields (score, nodes) of all trees of a span."""
    if end - start == 1:
        if words[symbol, row, start] > -np.inf:
            yield words[symbol, row, start], ((start, 1, symbol),)
        return
    for parent, left, right, weight in zip(*map(np.asarray, rules)):
        if parent != symbol:
            continue
        for at in range(start + 1, end):
            for a, first in trees(rules, words, row, left, start, at):
                for b, last in trees(rules, words, row, right, at, end):
                    node = (start, end - start, symbol)
                    yield weight + a + b, (node, *first, *last)


@jax.jit
def everything(rules, start, words, lengths):
    found = cky.inside(rules, start, words, lengths)
    total = lambda w, s, x: jnp.sum(  # noqa: E731
        jnp.where(
            jnp.isfinite(found), cky.inside(rules._replace(weights=w), s, x, lengths), 0
        )
    )
    counts = jax.grad(total, (0, 1, 2))(rules.weights, start, words)
    best = cky.viterbi(rules, start, words, lengths)
    return found, counts, best, cky.recognize(rules, start, words, lengths)


def test_all_trees_of_a_sentence():
    grammar = random_grammar()
    rules, start, words, lengths = grammar
    found, counts, best, member = jax.tree.map(np.asarray, everything(*grammar))
    assert member.all()
    expected = np.zeros(len(rules.weights))
    for row, length in enumerate(np.asarray(lengths)):
        every = {
            nodes: score + start[symbol]
            for symbol in range(S)
            for score, nodes in trees(rules, np.asarray(words), row, symbol, 0, length)
            if start[symbol] > -np.inf
        }
        total = np.logaddexp.reduce([float(x) for x in every.values()])
        assert found[row] == pytest.approx(total, rel=1e-5)
        top = max(every, key=every.get)
        assert best.scores[row] == pytest.approx(float(every[top]), rel=1e-5)
        assert best.scores[row] <= found[row] + 1e-6
        nodes = best.nodes[row]
        tree = tuple(map(tuple, nodes[: 2 * length - 1].tolist()))
        # Another tree may have the same rules, and so the same score.
        assert float(every[tree]) == pytest.approx(float(every[top]), rel=1e-5)
        assert (nodes[2 * length - 1 :, 1] == 0).all()
        for nodes, score in every.items():
            p, rest = np.exp(float(score) - total), list(nodes)
            for at, width, symbol in nodes:
                if width > 1:
                    left = rest[rest.index((at, width, symbol)) + 1]
                    right = next(
                        n
                        for n in rest[rest.index(left) :]
                        if n[0] == at + left[1] and n[1] == width - left[1]
                    )
                    rule = (symbol, left[2], right[2])
                    where = [*zip(*map(np.asarray, rules[:3]))].index(rule)
                    expected[where] += p
    np.testing.assert_allclose(counts[0], expected, atol=1e-4)
    lengths = np.asarray(lengths)
    assert counts[1].sum() == pytest.approx(3, rel=1e-5)  # one root each
    assert counts[0].sum() == pytest.approx((lengths - 1).sum(), rel=1e-5)
    assert counts[2].sum() == pytest.approx(lengths.sum(), rel=1e-5)


def test_a_sentence_without_a_tree():
    rules, start, words, lengths = random_grammar()
    words = words.at[:, 1, 1].set(-jnp.inf)
    found, counts, best, member = everything(rules, start, words, lengths)
    assert member.tolist() == [True, False, True]
    assert found[1] == best.scores[1] == -np.inf and np.isfinite(found[0])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(counts))
    none = everything(rules, start, words, jnp.zeros(3, jnp.int32))
    assert (none[0] == -np.inf).all() and (none[2].scores == -np.inf).all()
    assert not none[3].any()


def test_a_tree_whose_probability_is_lost_beside_another_is_found():
    rules = cky.Rules(*(jnp.asarray([x]) for x in (0, 1, 1)), jnp.zeros(1))
    start = jnp.asarray([0.0, -jnp.inf, -jnp.inf])
    words = jnp.asarray([-jnp.inf, -200.0, 0.0])[:, None, None]
    given = rules, start, jnp.broadcast_to(words, (3, 1, 2)), jnp.asarray([2])
    assert cky.inside(*given)[0] == -np.inf and cky.recognize(*given)[0]
    assert cky.viterbi(*given).scores[0] == -400


def test_a_sentence_in_a_longer_chart():
    """Widths in two loops, and spans that would begin beyond the sentence."""
    rules, start, words, _ = random_grammar(1)
    words = jnp.tile(words, (1, 1, 2))[:, :1, :7]
    both = jnp.concatenate([words, words], axis=1)
    found, counts, best, _ = everything(rules, start, both, jnp.asarray([7, 6]))
    rest = jax.jit(cky.inside)(rules, start, words[:, :, :6], jnp.asarray([6]))
    assert rest[0] == pytest.approx(float(found[1]), rel=1e-5) != float(found[0])
    assert counts[0].sum() == pytest.approx(6 + 5, rel=1e-4)
    assert counts[2].sum() == pytest.approx(7 + 6, rel=1e-4)
    assert best.nodes[1, :11, 1].min() == 1 and not best.nodes[1, 11:, 1].any()
    assert (best.scores < found).all()


def test_a_reference_grammar(test_data):
    """Inside, best parse and expected counts of sentences, as nltk finds them."""
    folder = test_data("ref_crf_hmm_pcfg")
    reference = json.loads((folder / "pcfg_toy.json").read_text())
    grammar = formats.parse([("toy", rule) for rule in reference["grammar"]], "toy")
    sentences = reference["sentences"]
    longest = max(len(s["words"]) for s in sentences)
    words = np.full(
        (len(grammar.symbols), len(sentences), longest), -np.inf, np.float32
    )
    lengths = np.array([len(s["words"]) for s in sentences])
    for row, sentence in enumerate(sentences):
        for at, word in enumerate(sentence["words"]):
            for symbol, own, weight in grammar.lexical:
                if own == word:
                    words[symbol, row, at] = weight
    rules = cky.Rules(*map(jnp.asarray, grammar.rules.values()))
    given = rules, jnp.asarray(grammar.start), jnp.asarray(words), jnp.asarray(lengths)
    found, counts, best, member = jax.tree.map(np.asarray, everything(*given))
    names, total = grammar.symbols, np.zeros(len(rules.weights))
    for row, sentence in enumerate(sentences):
        wanted = sentence["log_inside"]
        if wanted is None:  # "the the man"
            assert found[row] == best.scores[row] == -np.inf and not member[row]
            continue
        assert member[row]
        assert found[row] == pytest.approx(wanted, rel=1e-6)
        assert best.scores[row] == pytest.approx(
            np.log(sentence["viterbi_prob"]), rel=1e-6
        )
        nodes = iter(best.nodes[row].tolist())

        def text(nodes=nodes, sentence=sentence):
            at, width, symbol = next(nodes)
            parts = [sentence["words"][at]] if width == 1 else [text(), text()]
            return f"({names[symbol]} {' '.join(parts)})"

        assert text() == sentence["viterbi"]
        for at, rule in enumerate(zip(*map(np.asarray, rules[:3]))):
            parent, left, right = (names[i] for i in rule)
            total[at] += sentence["expected_counts"].get(
                f"{parent} -> {left} {right}", 0
            )
    np.testing.assert_allclose(counts[0], total, rtol=1e-5)
