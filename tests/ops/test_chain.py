"""Chains against the enumeration of all label sequences, and a reference CRF."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import chain as chains
from lm.ops.chain import Chain

K = 3
# A whole row, padding at both ends and within, two sequences, padding alone, one step.
SEGMENTS = np.array(
    [
        [1, 1, 1, 1, 1],
        [0, 1, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 1, 2, 0, 2],
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 1, 1, 2, 2],
    ],
    np.int32,
)
B, T = SEGMENTS.shape


def random_chain(kind, seed=0):
    """Scores of one kind: transitions "shared" or by "step", some "forbidden"."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) * 2  # noqa: E731
    by_step = kind == "step"
    transitions = draw(B, T, K, K) if by_step else draw(K, K)
    chain = Chain(
        draw(B, T, K), transitions, draw(B, T, K) if by_step else draw(K), draw(K)
    )
    if kind == "forbidden":
        chain.transitions[0, 1] = chain.transitions[2, 2] = -np.inf
        chain.start[1] = chain.end[0] = chain.emissions[1, 2, 2] = -np.inf
    if kind == "plain":
        chain = chain._replace(start=None, end=None)
    return Chain(*(x if x is None else jnp.asarray(x) for x in chain))


def sequences(chain, row):
    """{labels of the real steps: score} of a row, by loops over all of them."""
    steps = [t for t in range(T) if SEGMENTS[row, t]]
    emissions, transitions = np.asarray(chain.emissions), np.asarray(chain.transitions)
    zeros = np.zeros((B, T, K))
    start = np.broadcast_to(zeros if chain.start is None else chain.start, zeros.shape)
    end = np.zeros(K) if chain.end is None else np.asarray(chain.end)
    scores = {}
    for labels in itertools.product(range(K), repeat=len(steps)):
        total = 0.0
        for i, (t, y) in enumerate(zip(steps, labels)):
            total += emissions[row, t, y]
            before = SEGMENTS[row, steps[i - 1]] if i else 0
            if before == SEGMENTS[row, t]:
                moves = transitions[row, t] if transitions.ndim == 4 else transitions
                total += moves[labels[i - 1], y]
            else:
                total += start[row, t, y] + (end[labels[i - 1]] if before else 0)
        scores[labels] = total + (end[labels[-1]] if steps else 0)
    return steps, scores


def sum_of(scores):
    return np.logaddexp.reduce(list(scores.values()))


@jax.jit
def everything(chain, labels, segments=SEGMENTS):
    """All functions in one program."""
    segments = jnp.asarray(segments)
    return {
        "scaled": chains.log_partition(chain, segments),
        "log": chains.log_partition(chain, segments, log_space=True),
        "score": chains.score(chain, labels, segments),
        "nats": chains.nats(chain, labels, segments),
        "marginals": chains.marginals(chain, segments),
        "expected": chains.expectations(chain, segments),
        "slow": jax.grad(
            lambda c: chains.log_partition(c, segments, log_space=True).sum()
        )(chain),
        "entropy": chains.entropy(chain, segments),
        "best": chains.best(chain, segments),
        "five": chains.best(chain, segments, 5),
    }


@pytest.mark.parametrize("kind", ["shared", "plain", "forbidden", "step"])
def test_all_functions_against_enumeration(kind):
    chain = random_chain(kind)
    labels = np.random.default_rng(1).integers(0, K, (B, T)).astype(np.int32)
    found = jax.tree.map(np.asarray, everything(chain, labels))
    pairs = np.zeros((K, K))
    for row in range(B):
        steps, scores = sequences(chain, row)
        total = sum_of(scores)
        p = {y: np.exp(s - total) for y, s in scores.items()}
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)  # noqa: E731
        close(found["scaled"][row], total)
        close(found["log"][row], total)
        close(found["score"][row], scores[tuple(labels[row, steps])])
        if np.isfinite(found["score"][row]):
            close(found["nats"][row], total - scores[tuple(labels[row, steps])])
        expected = np.zeros((T, K))
        for y, share in p.items():
            for i, t in enumerate(steps):
                expected[t, y[i]] += share
                if i and SEGMENTS[row, steps[i - 1]] == SEGMENTS[row, t]:
                    pairs[y[i - 1], y[i]] += share
        close(found["marginals"][row], expected)
        close(found["entropy"][row], -sum(q * np.log(q) for q in p.values() if q > 0))
        ranked = sorted(scores, key=scores.get, reverse=True)
        ranked = [y for y in ranked if scores[y] > -np.inf][:5]
        for name, count in (("best", 1), ("five", len(ranked))):
            close(found[name].scores[row, :count], [scores[y] for y in ranked[:count]])
            for rank, y in enumerate(ranked[:count]):
                assert tuple(found[name].labels[row, rank, steps]) == y
        assert (found["five"].scores[row, len(ranked) :] == -np.inf).all()
        assert (found["five"].labels[row][:, SEGMENTS[row] == 0] == 0).all()
    transitions = found["expected"].transitions
    if kind == "step":
        assert transitions.shape == (B, T, K, K)
        transitions = transitions.sum(axis=(0, 1))
    np.testing.assert_allclose(transitions, pairs, atol=2e-5)
    for fast, slow in zip(
        jax.tree.leaves(found["expected"]), jax.tree.leaves(found["slow"])
    ):
        np.testing.assert_allclose(fast, slow, atol=2e-5)


def test_a_chain_of_pairs_is_one_of_first_order():
    """Labels are pairs h C + j with H = 4 and C = 3; those of h = 3 only begin."""
    rng = np.random.default_rng(4)
    H, C = 4, 3
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) * 2  # noqa: E731
    moves, start = draw(H, C, C), draw(H * C)
    moves[1, 2, 0], start[: C * C] = -np.inf, -np.inf
    pairs = Chain(draw(B, T, H * C), moves, start, draw(H * C))
    pairs = Chain(*map(jnp.asarray, pairs))
    segments = jnp.asarray(SEGMENTS)
    plain = chains.first_order(pairs)
    assert plain.transitions.shape == (H * C, H * C)
    assert plain.transitions[2 * C + 1, 1 * C + 0] == moves[2, 1, 0]
    assert plain.transitions[2 * C + 1, 2 * C + 1] == -np.inf

    @jax.jit
    def both(chain):
        best = chains.best(chain, segments)
        total = lambda c: chains.log_partition(c, segments).sum()  # noqa: E731
        return (
            chains.log_partition(chain, segments),
            chains.marginals(chain, segments),
            best,
            jax.grad(lambda m: total(chain._replace(transitions=m)))(chain.transitions),
            chains.score(chain, best.labels[:, 0], segments),
        )

    *found, gradient, scores = both(pairs)
    *wanted, dense, _ = both(plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(one, other, atol=2e-5)
    np.testing.assert_allclose(scores, found[-1].scores[:, 0], rtol=1e-5)
    h, i, j = np.meshgrid(range(H), range(C), range(C), indexing="ij")
    np.testing.assert_allclose(gradient, dense[h * C + i, i * C + j], atol=2e-5)


def test_a_row_without_a_permitted_sequence():
    """-inf and a gradient of zero, beside rows that are not concerned."""
    chain = random_chain("shared")
    emissions = np.array(chain.emissions)
    emissions[0, 3] = -np.inf
    chain = chain._replace(emissions=jnp.asarray(emissions))
    found = jax.tree.map(np.asarray, everything(chain, np.zeros((B, T), np.int32)))
    assert found["scaled"][0] == found["log"][0] == -np.inf
    assert np.isnan(found["entropy"][0]) and found["best"].scores[0, 0] == -np.inf
    for tree in (found["expected"], found["slow"]):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        assert (tree.emissions[0] == 0).all() and tree.emissions[1].sum() > 1


def test_samples_have_the_probabilities():
    chain, count = random_chain("forbidden"), 4000
    draw = jax.jit(
        jax.vmap(lambda key: chains.sample(key, chain, jnp.asarray(SEGMENTS)))
    )
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), count)))
    for row in range(B):
        steps, scores = sequences(chain, row)
        assert (drawn[:, row, SEGMENTS[row] == 0] == 0).all()
        total = sum_of(scores)
        for y, score in scores.items():
            p = np.exp(score - total)
            share = (drawn[:, row, steps] == y).all(axis=1).mean()
            assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / count) + 1e-6


def test_scores_that_differ_by_much():
    """Far beyond what exp can represent."""
    rng = np.random.default_rng(0)
    emissions = jnp.asarray(rng.normal(size=(1, 64, K)) * 1e3 + 1e4, jnp.float32)
    chain = Chain(emissions, jnp.asarray(rng.normal(size=(K, K)), jnp.float32))
    segments = jnp.ones((1, 64), jnp.int32)
    both = jax.jit(chains.log_partition, static_argnames="log_space")
    fast, slow = both(chain, segments), both(chain, segments, log_space=True)
    np.testing.assert_allclose(fast, slow, rtol=1e-5)


def test_the_reference_crf(test_data):
    """Weights, partition, marginals and best paths of a CRF that CRFsuite trained."""
    reference = json.loads((test_data("ref_crf_hmm_pcfg") / "crf_toy.json").read_text())
    names, rows = reference["labels"], reference["sequences"]
    longest = max(len(row["x"]) for row in rows)
    emissions = np.zeros((len(rows), longest, K), np.float32)
    segments = np.zeros((len(rows), longest), np.int32)
    for n, row in enumerate(rows):
        for t, attributes in enumerate(row["x"]):
            segments[n, t] = 1
            for k, name in enumerate(names):
                emissions[n, t, k] = sum(
                    reference["state"].get(f"{a}|{name}", 0) for a in attributes
                )
    transitions = [[reference["transition"][f"{a}|{b}"] for b in names] for a in names]
    chain = Chain(jnp.asarray(emissions), jnp.asarray(transitions))
    gold = [[names.index(y) for y in row["y"] or ()] for row in rows]
    labels = np.array([y + [0] * (longest - len(y)) for y in gold], np.int32)
    found = jax.tree.map(np.asarray, everything(chain, labels, segments))
    total = found["scaled"]
    np.testing.assert_allclose(total, [row["log_z"] for row in rows], rtol=1e-6)
    for n, row in enumerate(rows):
        size = len(row["x"])
        np.testing.assert_allclose(
            found["marginals"][n, :size], row["marginals"], atol=1e-6
        )
        best = [names.index(y) for y in row["best"]]
        assert found["best"].labels[n, 0, :size].tolist() == best
        assert found["best"].scores[n, 0] == pytest.approx(row["best_score"], rel=1e-6)
    log_p = found["score"] - total
    wanted = [row.get("log_p", 0) for row in rows[:-1]]
    np.testing.assert_allclose(log_p[:-1], wanted, atol=1e-5)
