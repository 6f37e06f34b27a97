"""The evaluator of retrieval: figures, runs and triples of vectors that are known."""

import json

import jax
import pytest

from lm import embedder, evaluations
from lm import run as runs
from lm.errors import ConfigError, DataError
from lm.formats import trec
from lm.metrics import ranking
from tests import tiny

TEXTS = [d["text"] for d in tiny.documents(14, seed=3)]
CORPUS = {f"d{n}": text for n, text in enumerate(TEXTS[:12])}
QUERIES = {"q1": TEXTS[12], "q2": TEXTS[13], "nobody": "dog"}
QRELS = {"q1": {"d3": 2, "d5": 1, "d7": 0}, "q2": {"d11": 1}}
DATA = {"sources": [{"name": "memory", "items": tiny.documents(16)}], "pack": False}


def section(place, **changes):
    """The section of an evaluation of files that are written to a folder."""
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        rows = [json.dumps({"_id": id, "text": text}) for id, text in texts.items()]
        (place / f"{name}.jsonl").write_text("\n".join(rows))
    (place / "qrels.tsv").write_text(trec.format_qrels(QRELS))
    files = {name: f"{place}/{name}.jsonl" for name in ("corpus", "queries")}
    files["qrels"] = f"{place}/qrels.tsv"
    return {"evaluator": "retrieval", "data": DATA, "resamples": 20} | files | changes


def config(evals):
    objective = {"name": "contrastive", "texts": ("text", "text")}
    return tiny.config(objective=objective, data=DATA, evals=evals)


@pytest.mark.slow
def test_figures_are_those_of_the_vectors(tmp_path):
    own = config({"x": section(tmp_path, negatives=3, depth=12)})
    corpus, program = tiny.program(own, tmp_path)
    params = program.init(jax.random.key(0))
    opened = runs.Run(own, tmp_path, corpus, program, params, 0)
    with opened.on_mesh():
        vectors = embedder.open_embedder(opened, batch_size=8).embed(TEXTS)
        evaluation = evaluations.open_evaluators(own, tmp_path, corpus, program)["x"]
        found = evaluation(params, 0)
    assert [*found] == [
        f"x/{name}"
        for name in evaluation.evaluator.yields(evaluation.examples.objective)
    ]
    run = {
        query: dict(zip(CORPUS, (vectors[:12] @ vectors[row]).tolist()))
        for query, row in (("q1", 12), ("q2", 13))
    }
    judged = ranking.judge(run, QRELS, QRELS)
    for name, values in ranking.compute(judged, ["ndcg@10", "map", "mrr"]).items():
        assert found[f"x/dense_{name}"] == pytest.approx(values.mean(), abs=1e-6)
        low, high = found[f"x/dense_{name}_low"], found[f"x/dense_{name}_high"]
        assert low <= found[f"x/dense_{name}"] <= high
    for method in ("dense", "bm25", "fusion"):
        written = trec.read_run(tmp_path / "samples" / f"x-0.{method}.run")
        assert {*written} == {"q1", "q2"}
    dense = trec.read_run(tmp_path / "samples" / "x-0.dense.run")
    assert [*dense["q1"]] == ranking.ranked(run["q1"])
    rows = (tmp_path / "samples" / "x-0.triples.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):  # from ranks 10 to 12
        query = "q1" if row["text"] == QUERIES["q1"] else "q2"
        last = [CORPUS[id] for id in ranking.ranked(run[query])[9:]]
        assert row["negative"] in last and row["positive"] in CORPUS.values()


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"qrels": "none.tsv"}, r"evals\.x\.qrels"),
        ({"metrics": ("ndgc@10",)}, r"evals\.x\.metrics"),
        ({"methods": ()}, r"evals\.x\.methods"),
        ({"methods": ("sparse",)}, r"evals\.x\.methods"),
        ({"methods": ("fusion",), "negatives": 1}, r"evals\.x\.negatives"),
    ],
)
def test_a_wrong_section_is_refused(changes, found, tmp_path):
    with pytest.raises(ConfigError, match=found):
        runs.check(config({"x": section(tmp_path, **changes)}))


def test_an_objective_without_vectors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="embeddings"):
        runs.check(tiny.config(evals={"x": section(tmp_path)}))


def test_judgements_of_other_documents_are_refused(tmp_path):
    evals = {"x": section(tmp_path)}
    (tmp_path / "qrels.tsv").write_text(trec.format_qrels({"q1": {"d99": 1}}))
    own = config(evals)
    corpus, program = tiny.program(own, tmp_path)
    evaluation = evaluations.open_evaluators(own, tmp_path, corpus, program)["x"]
    with pytest.raises(DataError, match="1 unknown of 1 documents, such as 'd99'"):
        evaluation(None, 0)
