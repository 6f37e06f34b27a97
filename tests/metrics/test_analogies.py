"""Analogies and neighbours beside the formulae, one question at a time."""

import numpy as np

from lm.metrics import vectors


def test_answers_are_those_of_the_formulae():
    rng = np.random.default_rng(0)
    table = vectors.normalised(rng.normal(size=(30, 6)))
    questions = np.stack([rng.choice(30, 3, replace=False) for _ in range(20)])
    added, multiplied = vectors.solve(questions, table, chunk=7)
    differ = 0
    for (a, b, c), by_sum, by_product in zip(questions, added, multiplied):
        best = {}
        for word in {*range(30)} - {a, b, c}:
            cosines = [float(table[word] @ table[each]) for each in (a, b, c)]
            to_a, to_b, to_c = ((1 + cosine) / 2 for cosine in cosines)
            best[word] = (
                cosines[1] - cosines[0] + cosines[2],
                to_b * to_c / (to_a + 0.001),
            )
        assert by_sum == max(best, key=lambda word: best[word][0])
        assert by_product == max(best, key=lambda word: best[word][1])
        differ += by_sum != by_product
    assert differ  # The two are not the same.


def test_nearest_words_leave_out_the_word_itself():
    table = vectors.normalised(np.asarray([[1.0, 0], [1, 0.1], [0, 1], [0, 0]]))
    rows, cosines = vectors.nearest(np.asarray([0]), table, 2)
    assert rows.tolist() == [[1, 2]] and cosines[0, 1] == 0
    none = np.zeros((0, 3), np.int64)
    assert len(vectors.solve(none, table)[0]) == 0
