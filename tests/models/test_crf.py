"""Chains over features: a reference optimum, sums to 1, label bias, packing, a run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.main import main
from lm.models import crf
from lm.ops import chain
from lm.workdir.writer import read_rows


def minimised(packed, F, C, *, local=False, c2=0.3, steps=60, state=None):
    zeros = {
        "state": np.zeros((F, C), np.float32),
        "transitions": np.zeros((C, C), np.float32),
    }
    seen = jax.tree.map(lambda x: np.ones(x.shape, bool), zeros)
    return crf._minimise(local, steps, 6, c2, zeros, seen, packed, state)


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
    weights, _, found = minimised(packed, 4, 3)
    wanted = reference["objective_nll_plus_c2_w2"]
    assert float(found["loss"]) == pytest.approx(wanted, rel=2e-6)
    for key, weight in reference["state"].items():
        a, y = key.split("|")
        own = weights["state"][attributes.index(a), names.index(y)]
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
    weights, _, _ = minimised(packed, 4, 6, local=local, c2=1e-3)
    made = crf.scores(weights, packed["features"], local)
    return weights, packed, made


def test_a_memm_has_probabilities_without_a_sum_and_label_bias():
    weights, packed, made = toy(local=True)
    segments = packed["segments"]
    np.testing.assert_allclose(chain.log_partition(made, segments), 0, atol=1e-5)
    total = 0.0
    for labels in itertools.product(range(6), repeat=3):
        each = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (4, 3))
        total += np.exp(chain.score(made, each, segments)[0])
    assert total == pytest.approx(1, rel=1e-4)
    nats = crf.nats(weights, packed, True)
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
    packed = crf.pack(keys, statistics)
    real = packed["segments"] > 0
    assert real.sum() == 18 and packed["segments"].shape[1] == 6
    np.testing.assert_array_equal(packed["labels"][real], statistics["labels"])
    wanted = [[3 if f not in keys else int(np.searchsorted(keys, f)) for f in row]
              for row in statistics["features"]]  # fmt: skip
    np.testing.assert_array_equal(packed["features"][real], wanted)
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
