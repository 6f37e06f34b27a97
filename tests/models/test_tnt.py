"""Taggers by counts: frequencies by hand, pairs of tags against enumeration, a run."""

import itertools

import numpy as np
import pytest

from lm.main import main
from lm.models import tnt
from lm.ops import chain
from lm.workdir.writer import read_rows
from tests.ops.test_chain import K, jnp


def test_deleted_interpolation_by_hand():
    """Two sentences, a b a and b a, over two tags; 2 begins and ends."""
    labels, first = np.array([0, 1, 0, 1, 0]), np.array([1, 0, 0, 1, 0], bool)
    found = tnt.transitions(labels, first, 2, 3)
    np.testing.assert_allclose(found[1, 0].sum(), 1)
    # Trigrams say as much as bigrams about the four that are seen twice, and a tie goes
    # to the shorter; so each trigram adds its count to one of the three shares.
    uni = np.array([3, 2, 2]) / 7
    bi = np.array([[0, 1 / 3, 2 / 3], [1, 0, 0], [1 / 2, 1 / 2, 0]])
    shares = {}
    for tags, times in {(2, 2, 0): 1, (2, 0, 1): 1, (0, 1, 0): 1, (1, 0, 2): 2,
                        (2, 2, 1): 1, (2, 1, 0): 1}.items():  # fmt: skip
        pair, before = {(2, 2): 2, (1, 0): 2}.get(tags[:2], 1), {0: 3, 1: 2, 2: 2}
        n = {(0, 1): 1, (0, 2): 2, (1, 0): 2, (2, 0): 1, (2, 1): 1}[tags[1:]]
        say = [
            ([3, 2, 2][tags[2]] - 1) / 6,
            (n - 1) / (before[tags[1]] - 1),
            (times - 1) / (pair - 1) if pair > 1 else 0,
        ]
        best = int(np.argmax(say))
        shares[best] = shares.get(best, 0) + times / 7
    for i, j in ((2, 2), (0, 1), (1, 0)):
        tri = {(2, 2): [0.5, 0.5, 0], (0, 1): [1, 0, 0], (1, 0): [0, 0, 1]}[i, j]
        parts = np.stack([uni, bi[j], tri])
        wanted = sum(shares.get(n, 0) * parts[n] for n in range(3))
        np.testing.assert_allclose(found[i, j], wanted, atol=1e-9)


def test_pairs_of_tags_against_enumeration():
    rng = np.random.default_rng(0)
    D = K + 1
    moves = np.log(rng.dirichlet(np.ones(D), (D, D))).astype(np.float32)
    emissions = rng.normal(size=(1, 4, K)).astype(np.float32)
    made = tnt.Model(order=3)._states(jnp.asarray(moves), jnp.asarray(emissions))
    segments = jnp.ones((1, 4), jnp.int32)
    scores = {}
    for tags in itertools.product(range(K), repeat=4):
        whole = [K, K, *tags, K]
        total = sum(moves[whole[t], whole[t + 1], whole[t + 2]] for t in range(5))
        scores[tags] = total + sum(emissions[0, t, y] for t, y in enumerate(tags))
    wanted = np.logaddexp.reduce([float(x) for x in scores.values()])
    assert float(chain.log_partition(made, segments)[0]) == pytest.approx(
        wanted, rel=1e-5
    )
    best = chain.best(made, segments).labels[0, 0] % K
    assert tuple(best.tolist()) == max(scores, key=scores.get)


def test_a_run(tmp_path, capsys):
    """Trigrams learn the few sentences."""
    assert main(["--config=configs/tnt.py:quick", f"--workdir={tmp_path}/run"]) == 0
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert row["dev/accuracy"] == 1 and row["train/words"] == 35
    capsys.readouterr()
