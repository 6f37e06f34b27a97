"""Chains over features: a reference optimum, sums to 1, label bias, packing, a run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.main import main
from lm.models import crf
from lm.ops import chain, sparse, words
from lm.workdir.writer import read_rows


def minimised(packed, F, C, *, local=False, c1=0.0, c2=0.3, steps=60, memory=None):
    zeros = {
        "state": np.zeros((F, C), np.float32),
        "transitions": np.zeros((C, C), np.float32),
    }
    seen = jax.tree.map(lambda x: np.ones(x.shape, bool), zeros)
    packed = packed | {"order": sparse.by_row(np.asarray(packed["features"]), F)}
    return crf.minimise(local, steps, 6, c1, c2, zeros, seen, packed, memory)


def test_the_optimum_of_a_reference(test_data):
    """CRFsuite's loss of 9.3556, with every attribute and pair of tags possible."""
    file = test_data("ref_crf_hmm_pcfg") / "crf_toy.json"
    reference = json.loads(file.read_text())
    rows = [row for row in reference["sequences"] if row["y"]]
    names, attributes = reference["labels"], ["a", "x", "b", "c"]
    features = np.full((len(rows), 5, 2), len(attributes), np.int32)
    labels, segments = (np.zeros((len(rows), 5), np.int32) for _ in range(2))
    for n, row in enumerate(rows):
        for t, (x, y) in enumerate(zip(row["x"], row["y"])):
            features[n, t, : len(x)] = [attributes.index(a) for a in x]
            labels[n, t], segments[n, t] = names.index(y), 1
    packed = {"features": features, "labels": labels, "segments": segments}
    packed = jax.tree.map(jnp.asarray, packed)
    found = minimised(packed, 4, 3)
    wanted = reference["objective_nll_plus_c2_w2"]
    assert float(found.value) == pytest.approx(wanted, rel=2e-6)
    for key, weight in reference["state"].items():
        a, y = key.split("|")
        own = found.weights["state"][attributes.index(a), names.index(y)]
        assert float(own) == pytest.approx(weight, abs=2e-3)


def toy(local):
    """Label bias (Bottou 1991; Lafferty et al. 2001, section 2).

    The texts "r i b" and "r o b" begin alike, the first is more frequent. The tag of r
    cannot be revised by the next word where each step has probabilities of its own.
    """
    ways = [([0, 1, 3], [0, 1, 2]), ([0, 2, 3], [3, 4, 5])]
    texts = [ways[0]] * 3 + [ways[1]]
    packed = {
        "features": jnp.asarray(
            [[[w] for w in words] for words, _ in texts], jnp.int32
        ),
        "labels": jnp.asarray([y for _, y in texts], jnp.int32),
        "segments": jnp.ones((4, 3), jnp.int32),
    }
    weights = minimised(packed, 4, 6, local=local, c2=1e-3).weights
    emissions = sparse.row_sums(weights["state"], packed["features"])
    return weights, packed, crf.scores(weights, emissions, local)


def test_a_memm_has_probabilities_without_a_sum_and_label_bias():
    weights, packed, made = toy(local=True)
    segments = packed["segments"]
    np.testing.assert_allclose(chain.log_partition(made, segments), 0, atol=1e-5)
    total = 0.0
    for labels in itertools.product(range(6), repeat=3):
        each = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (4, 3))
        total += np.exp(chain.score(made, each, segments)[0])
    assert total == pytest.approx(1, rel=1e-4)
    order = sparse.by_row(np.asarray(packed["features"]), 4)
    nats = crf.nats(weights, packed | {"order": order}, True)
    right = chain.score(made, packed["labels"], segments).sum()
    assert float(nats) == pytest.approx(-float(right), rel=1e-5)
    # The MEMM begins the rare text like the frequent one; the CRF reads it rightly.
    bias = chain.best(made, segments).labels[3, 0].tolist()
    _, _, other = toy(local=False)
    assert bias[0] == 0
    assert chain.best(other, segments).labels[3, 0].tolist() == [3, 4, 5]


def test_sentences_of_any_length_are_packed(monkeypatch):
    monkeypatch.setattr(crf, "WIDTH", 4)
    rng = np.random.default_rng(0)
    sizes = [3, 1, 4, 2, 2, 6]
    first = np.concatenate([np.arange(size) == 0 for size in sizes])
    keys = np.array([3, 5, 9], np.uint32)
    statistics = {
        "features": rng.choice([0, 3, 4, 5, 9], (18, 2)).astype(np.uint32),
        "labels": rng.integers(0, 3, 18).astype(np.int32),
        "first": first,
    }
    packed = crf.pack(words.find(keys, statistics["features"], np), 3, statistics)
    real = packed["segments"] > 0
    assert real.sum() == 18 and packed["segments"].shape[1] == 6
    np.testing.assert_array_equal(packed["labels"][real], statistics["labels"])
    wanted = [[3 if f not in keys else int(np.searchsorted(keys, f)) for f in row]
              for row in statistics["features"]]  # fmt: skip
    np.testing.assert_array_equal(packed["features"][real], wanted)
    rows, by = packed["order"]
    assert (np.diff(rows) >= 0).all() and len(rows) == (np.asarray(wanted) < 3).sum()
    assert (packed["features"].reshape(-1, 2)[by] == rows[:, None]).any(axis=1).all()
    before = np.diff(packed["segments"], axis=1, prepend=0)
    assert ((before != 0) & real).sum() == len(sizes)


@pytest.mark.slow
def test_a_run_that_goes_on(tmp_path, capsys):
    """Two passes of 4 steps, the second from the memory of the first."""
    flags = ["--config=configs/crf.py:quick", "--config.model.iterations=4"]
    assert main([*flags, f"--workdir={tmp_path}/a", "--config.steps=1"]) == 0
    assert main([*flags, f"--workdir={tmp_path}/a", "--config.steps=2"]) == 0
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    assert rows[1]["train/objective"] < rows[0]["train/objective"]
    assert rows[1]["dev/accuracy"] == 1
    capsys.readouterr()
    wrong = [*flags, f"--workdir={tmp_path}/b", "--config.model.templates=['suffix']"]
    assert main(wrong) == 2
    assert "model.templates" in capsys.readouterr().err


@pytest.mark.slow
def test_batches_and_passes_reach_the_same_loss(tmp_path, capsys):
    """By job train and by job fit, with so few features that words share them."""
    found = {}
    for job in ("fit", "train"):
        flags = [
            f"--config=configs/crf.py:quick{',train' * (job == 'train')}",
            f"--workdir={tmp_path}/{job}",
            "--config.model.buckets=8",
            "--config.model.templates=['bias', 'shape']",
            "--config.model.every=all",
            "--config.model.c2=0",
            "--config.model.iterations=300",
            "--config.evals.dev.evaluator=mean",
            f"--config.steps={'100 steps' if job == 'train' else 1}",
            "--config.log.every=100",
            "--config.batch_size=8",  # both rows, four times
        ]
        if job == "train":
            flags.append("--config.optim.lr=1.0")
        assert main(flags) == 0
        found[job] = read_rows(tmp_path / job / "metrics.jsonl")[-1]["dev/tag_loss"]
    assert 0.1 < found["fit"] < 0.3
    assert found["fit"] - 1e-4 < found["train"] < found["fit"] + 2e-3
    capsys.readouterr()
    # Without buckets the parameters are those of the data.
    flags = ["--config=configs/crf.py:quick,train", "--config.model.buckets=None"]
    assert main([*flags, f"--workdir={tmp_path}/none"]) == 2
    assert "error[config] job: found 'train'" in capsys.readouterr().err


def test_an_elastic_net_of_a_crf():
    """At the minimum |gradient| <= c1 where w = 0, else it is -c1 sign(w)."""
    _, packed, _ = toy(local=False)
    c1, c2 = 0.3, 0.01
    found = minimised(packed, 4, 6, c1=c1, c2=c2, steps=200)
    packed = packed | {"order": sparse.by_row(np.asarray(packed["features"]), 4)}
    slopes = jax.grad(lambda w: crf.nats(w, packed, False))(found.weights)
    zeros = 0
    for name, w in jax.tree.map(np.asarray, found.weights).items():
        slope = np.asarray(slopes[name]) + 2 * c2 * w
        zeros += (w == 0).sum()
        assert (np.abs(slope[w == 0]) <= c1 + 1e-3).all()
        np.testing.assert_allclose(slope[w != 0], -c1 * np.sign(w[w != 0]), atol=2e-3)
    assert 10 < zeros < 60 - 2
