"""Weights of scores: choices, ties, and tuning against a search of all points."""

import itertools

import numpy as np
import pytest

from lm.metrics import rescoring


def lists(seed=0, utterances=30):
    """Random lists of different sizes; the errors fall with the second score."""
    rng = np.random.default_rng(seed)
    scores, errors = [], []
    for _ in range(utterances):
        size = int(rng.integers(1, 8))
        wrong = rng.integers(0, 6, size)
        own = -np.sort(rng.random(size))
        model = -2.0 * wrong + rng.normal(0, 3, size)
        scores.append(np.stack([own, model, rng.integers(3, 6, size)]))
        errors.append(wrong.tolist())
    return rescoring.pack(scores, errors), scores, errors


def test_choices_and_errors_by_hand():
    packed, scores, errors = lists()
    for weights in ((0.0, 0.0), (0.3, 1.5), (2.0, -1.0)):
        chosen = [int(np.argmax(s[0] + weights @ s[1:])) for s in scores]
        assert packed.choose(weights).tolist() == chosen
        assert packed.count(weights) == sum(e[n] for e, n in zip(errors, chosen))
    assert packed.choose((0.0, 0.0)).tolist() == [0] * 30  # the first of the list
    oracle = sum(map(min, errors))
    assert oracle <= rescoring.tune(packed, ([0.0, 0.5, 1.0], [0.0, 1.0])).errors


def test_equal_hypotheses_and_weights_are_the_first_ones():
    even = rescoring.pack([np.zeros((2, 4))], [[3, 0, 1, 0]])
    assert even.choose((1.0,)).tolist() == [0]
    tuned = rescoring.tune(even, ([-1.0, 0.0, 1.0],))
    assert tuned == ((-1.0,), (-1.0,), 3)


def test_the_grid_finds_its_best_point_and_steps_lower_the_errors():
    packed, _, _ = lists(1)
    grids = [round(0.1 * n, 1) for n in range(11)], [0.0, 1.0, 2.0]
    tuned = rescoring.tune(packed, grids, rounds=0)
    counts = {point: packed.count(point) for point in itertools.product(*grids)}
    best = min(counts.values())
    first = next(point for point, count in counts.items() if count == best)
    assert tuned == (first, first, best)
    finer = rescoring.tune(packed, grids, rounds=4)
    assert finer.grid == first and finer.errors <= best
    assert finer.errors == packed.count(finer.weights)
    assert finer == rescoring.tune(packed, grids, rounds=4)
    # Between two points of this grid there is one with an error less.
    own, model = np.asarray([0.0, -0.3]), np.asarray([0.0, 1.0])
    other = np.asarray([0.0, -0.7])
    two = rescoring.pack(
        [np.stack([own, model]), np.stack([other, model])], [[1, 0], [0, 1]]
    )
    assert [two.count((a,)) for a in (0.0, 0.5, 1.0)] == [1, 0, 1]
    assert rescoring.tune(two, ([0.0, 1.0],)) == ((0.5,), (0.0,), 0)
    with pytest.raises(ValueError, match="points"):
        rescoring.tune(packed, ([0.0] * 1000,) * 2)
