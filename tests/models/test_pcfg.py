"""A grammar counted from trees and refined: sums, likelihood, unknown words, a run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pcfg as config
from lm.data import trees
from lm.main import main
from lm.models import pcfg
from lm.models.pcfg import Model
from lm.objectives.parsing import Arrays, word_class
from lm.workdir.writer import read_rows

ROW, RNG = 8, np.random.default_rng(0)
TREES = [trees.binary(trees.parse(text)) for text in config.TREES]
TOKENS = sorted({t for tree in TREES for t in trees.tokens(tree).split()})
IDS = {token: 2 + n for n, token in enumerate(TOKENS)}


def batch_of(some):
    """The words of trees (or words alone) as the objective gives them."""
    rows = []
    for item in some:
        words = item if isinstance(item, list) else [w for _, w in trees.tags(item)]
        tree = "" if isinstance(item, list) else trees.tokens(item)
        pieces = [
            np.array([IDS.get(t, 1) for t in part], np.int32)
            for part in (words, tree.split())
        ]
        classes = np.array([word_class(word) for word in words])
        rows.append(Arrays(ROW, 0)({"pieces": pieces, "classes": classes}, RNG))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def counted():
    token = lambda i: ["<pad>", "<unk>", *TOKENS][i]  # noqa: E731
    codec = types.SimpleNamespace(vocab_size=2 + len(TOKENS), token=token)
    model = Model(vocab_size=codec.vocab_size)
    params, memory = model.start(types.SimpleNamespace(codec=codec))
    parts = [
        model.statistics(params, batch_of(part)) for part in (TREES[:2], TREES[2:])
    ]
    batch = batch_of(TREES)
    batch["weights"][0] = 0  # as a row that pads the last batch
    less = model.statistics(params, batch)
    assert less["start"][1].sum() == len(TREES) - 1
    params, memory, found = model.improve(params, memory, model.merge(*parts))
    assert found["sentences"] == len(TREES)
    return model, params, memory


def sums(model, params):
    """The sum of the probabilities of the rules of each symbol, and of the roots."""
    rules, lexicon = params["rules"], params["lexicon"]
    words = lexicon["entry"] < model.vocab_size
    total = np.bincount(rules["parent"], np.exp(rules["weights"]), len(params["start"]))
    np.add.at(total, lexicon["symbol"][words], np.exp(lexicon["weights"][words]))
    return total, np.exp(params["start"]).sum()


def test_probabilities_sum_to_one_and_passes_make_sentences_likelier(counted):
    model, params, memory = counted
    batch, nats = batch_of(TREES), []
    for number in range(4):
        np.testing.assert_allclose(sums(model, params)[0], 1, rtol=1e-5)
        assert sums(model, params)[1] == pytest.approx(1, rel=1e-5)
        statistics = model.statistics(params, batch)
        counts = {name: x.sum() for name, x in statistics["counts"].items()}
        words = batch["weights"].sum()
        assert counts["start"] == pytest.approx(len(TREES), rel=1e-4)
        assert counts["rules"] == pytest.approx(words - len(TREES), rel=1e-4)
        assert counts["lexicon"] == pytest.approx(words, rel=1e-4)
        nats.append(float(statistics["nats"]))
        params, memory, measured = model.improve(params, memory, statistics)
        assert measured["loss"] == pytest.approx(nats[-1] / words, rel=1e-6)
        assert memory["passes"] == number + 2
    assert (np.diff(nats) < 1e-4).all() and nats[-1] < nats[0] - 0.1


def test_unknown_words_and_sentences_without_a_tree(counted, monkeypatch):
    model, params, _ = counted
    known = ["the", "man", "saw", "Mary"]
    new = ["the", "telescopist", "saw", "Mary"]  # of the class of words seen once
    none = ["the", "the", "man"]
    batch = jax.tree.map(jnp.asarray, batch_of([known, new, none, none, none]))

    def ask(m):
        inside = m.log_inside(batch)
        monkeypatch.setattr(pcfg, "CHARTS", 2 * ROW * ROW * len(params["symbols"]))
        parts = m.log_inside(batch)  # two sentences at a time
        return inside, parts, m.has_tree(batch), m.log_prob(batch), m.parse(batch)

    asked = jax.jit(lambda p: model.apply({"params": p}, method=ask))
    params = jax.tree.map(jnp.asarray, params)
    inside, parts, has, mixed, best = jax.tree.map(np.asarray, asked(params))
    np.testing.assert_allclose(parts, inside, rtol=1e-6)
    assert has.tolist() == [True, True, False, False, False]
    assert np.isfinite(inside[:2]).all() and inside[2] == best.scores[2] == -np.inf
    assert np.isfinite(mixed).all() and mixed[0] == pytest.approx(inside[0], abs=0.01)
    assert (best.scores <= inside + 1e-5).all()
    labels = [["<pad>", "<unk>", *TOKENS][i] for i in best.nodes[0, :7, 2]]
    assert labels == ["(S", "(NP", "(DT", "(NN", "(VP", "(VBD", "(NP+NNP"]


def test_a_run_scores_its_parses(tmp_path, capsys):
    assert main(["--config=configs/pcfg.py:quick", f"--workdir={tmp_path}/run"]) == 0
    capsys.readouterr()
    last = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["dev/sentences"] == 5 and last["dev/unparsed"] == 0
    assert 0.9 < last["dev/f1"] <= 1 and last["dev/log_inside"] < 0
    (file,) = (tmp_path / "run" / "samples").iterdir()
    assert next(str(trees.parse(line)) for line in file.read_text().splitlines()) == (
        "(S (NP (DT the) (NN man)) (VP (VBD saw) (NP (NNP Mary))))"
    )
