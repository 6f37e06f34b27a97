"""Evaluator similarity: correlations of all pairs, intervals, the plain figure."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scipy import stats

from lm import evaluations
from lm import run as runs
from lm.errors import ConfigError
from tests import tiny

TEXTS = [d["text"] for d in tiny.documents(22)]
ITEMS = tuple(
    {"a": TEXTS[n], "b": TEXTS[n + 11], "score": (n * 7) % 11 / 2} for n in range(11)
)
DATA = {"sources": [{"name": "memory", "items": ITEMS}], "pack": False}


def settings(**section):
    """A run without scores, whose evaluation has them."""
    sts = {
        "evaluator": "similarity",
        "objective": {"texts": ("a", "b"), "label": "score", "between": (0.0, 5.0)},
        "data": DATA,
        "batch_size": 4,
        "resamples": 200,
    }
    objective = {"name": "contrastive", "texts": ("a", "a")}
    evals = {"sts": sts | section}
    return tiny.config(objective=objective, data=DATA, evals=evals, model__init_std=0.5)


def test_correlations_are_over_all_pairs_at_once(tmp_path):
    """In three batches of four pairs, one of them padding."""
    config, notes = settings(write=True), []
    corpus, program = tiny.program(config, tmp_path)
    corpus = dataclasses.replace(corpus, note=notes.append)
    params = program.init(jax.random.key(0))
    with tiny.some_devices(config), jax.set_mesh(program.mesh):
        evaluators = evaluations.open_evaluators(config, tmp_path, corpus, program)
        found = evaluators["sts"](params, 3)
        evaluators["sts"](params, 4)
        cosines = []
        for n in range(11):
            example = corpus.evals["sts"].example(n)
            names = [name for name in example if name != "example_ids"]
            batch = {name: np.stack([example[name]] * 4) for name in names}
            one, two = program.predict(params, batch)[1]["embeddings"][0]
            cosines.append(float(one @ two))
    labels = [item["score"] for item in ITEMS]
    wanted = stats.spearmanr(labels, cosines).statistic
    assert found["sts/spearman"] == pytest.approx(wanted, abs=1e-6)
    wanted = stats.pearsonr(labels, cosines).statistic
    assert found["sts/pearson"] == pytest.approx(wanted, abs=1e-5)
    for name in ("spearman", "pearson"):
        low, high = (found[f"sts/{name}_{end}"] for end in ("low", "high"))
        assert -1 <= low < found[f"sts/{name}"] < high <= 1

    sets = [[{*corpus.codec.encode(item[k])[:22]} for k in "ab"] for item in ITEMS]
    overlap = [len(a & b) / len(a | b) for a, b in sets]
    plain = [note for note in notes if "overlap of tokens" in note]
    assert len(plain) == 1  # once, though it was evaluated twice
    value = float(plain[0].split("spearman ")[1].split()[0])
    assert value == pytest.approx(stats.spearmanr(labels, overlap).statistic, abs=1e-3)

    lines = (tmp_path / "predictions" / "sts-3.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == labels
    np.testing.assert_allclose([row["score"] for row in rows], cosines, atol=1e-5)


def test_an_objective_without_scores_is_refused():
    config = settings(objective={"texts": ("a", "b")})
    with pytest.raises(ConfigError, match="similarities"):
        runs.check(config)
