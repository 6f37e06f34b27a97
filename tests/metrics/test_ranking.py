"""Measures of ranked lists: by hand, and equal to trec_eval's figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lm.formats import trec
from lm.metrics import ranking

# Random lists with ties, negative gains and short lists, a query without relevant
# documents, one that was not searched, one without judgements, and a tie that only
# single precision has; the figures are those of pytrec_eval-terrier 0.5.11.
REFERENCE = json.loads((Path(__file__).parent / "ranking.json").read_text())
TREC = {
    "map": "map",
    "map@10": "map_cut_10",
    "ndcg": "ndcg",
    "ndcg@5": "ndcg_cut_5",
    "ndcg@10": "ndcg_cut_10",
    "ndcg@100": "ndcg_cut_100",
    "mrr": "recip_rank",
    "precision@5": "P_5",
    "precision@10": "P_10",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "success@1": "success_1",
    "success@10": "success_10",
    "r_precision": "Rprec",
}


def test_figures_by_hand():
    run = {"q": {"a": 5.0, "b": 4.0, "c": 3.0, "d": 2.0, "e": 1.0}}
    judged = ranking.judge(run, {"q": {"b": 2, "d": 1, "x": 3, "a": -1}}, ["q"])
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    expected = {
        "ndcg": (2 / math.log2(3) + 1 / math.log2(5)) / ideal,
        "ndcg@2": (2 / math.log2(3)) / (3 + 2 / math.log2(3)),
        "map": (1 / 2 + 2 / 4) / 3,
        "map@3": (1 / 2) / 3,
        "mrr": 1 / 2,
        "mrr@1": 0.0,
        "recall@3": 1 / 3,
        "recall": 2 / 3,
        "precision": 2 / 5,
        "precision@2": 1 / 2,
        "precision@10": 2 / 10,
        "success@1": 0.0,
        "success@2": 1.0,
        "r_precision": 1 / 3,
    }
    for name, values in ranking.compute(judged, [*expected]).items():
        np.testing.assert_allclose(values, [expected[name]], atol=1e-12, err_msg=name)


def test_every_query_has_the_figure_of_trec_eval():
    run, qrels = REFERENCE["run"], REFERENCE["qrels"]
    queries = ranking.common(run, qrels)
    assert queries == [query for query in run if query != "unjudged"]
    judged = ranking.judge(run, qrels, queries)
    for name, expected in REFERENCE["values"].items():
        found = ranking.compute(judged, [name])[name]
        np.testing.assert_allclose(
            found, [expected[query] for query in queries], atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("kind", ["graded", "binary"])
def test_cranfield_has_the_figures_of_trec_eval(kind, test_data):
    place = test_data("ref_retrieval_cranfield")
    expected = json.loads((place / "expected.json").read_text())
    run = trec.read_run(place / "bm25.run.gz")
    qrels = trec.read_qrels(place / f"qrels_{kind}.gz")
    judged = ranking.judge(run, qrels, ranking.common(run, qrels))
    assert len(judged.queries) == expected["queries"]
    means = expected[f"pytrec_eval_{kind}"]
    for name, values in ranking.compute(judged, [*TREC]).items():
        assert values.mean() == pytest.approx(means[TREC[name]], abs=1e-12), name
    for query, own in expected[f"pytrec_eval_{kind}_per_query"].items():
        row = judged.queries.index(query)
        for name in ("map", "ndcg@10", "mrr"):
            value = ranking.compute(judged, [name])[name][row]
            assert value == pytest.approx(own[TREC[name]], abs=1e-6)


def test_of_equal_scores_the_larger_id_stands_first():
    scores = {"b": 1.0, "10": 2.0, "9": 2.0, "B": 1.0}
    assert ranking.ranked(scores) == ["9", "10", "b", "B"]


def test_what_nobody_searched_or_judged():
    qrels = {"q": {"a": 1}, "nothing": {"a": 0}}
    judged = ranking.judge({}, qrels, ["q", "nothing"])
    for name in ("ndcg@10", "map", "mrr", "recall@5", "precision", "r_precision"):
        assert ranking.compute(judged, [name])[name].tolist() == [0.0, 0.0], name


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg@0", "ndcg@", "map@x", "@10", ""])
def test_a_name_that_is_no_measure(name):
    assert ranking.parse(name) is None
    with pytest.raises(ValueError, match="no measure"):
        ranking.compute(ranking.judge({}, {}, []), [name])
