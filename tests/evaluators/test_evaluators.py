"""Evaluators against numbers worked out by hand, padding rows included."""

import dataclasses
import math
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import evaluations
from lm import run as runs
from lm.evaluators import base, brackets, mean
from lm.objectives import causal_lm, mlm
from tests import tiny


@dataclasses.dataclass
class Codec:
    special_ids: frozenset = frozenset({0})
    unk_id: int | None = None


class Stream:
    """Two rows with targets 1 1 2 and 2, the rest padding."""

    def evaluated(self, rows):
        return rows

    def example(self, n):
        targets = np.array([[1, 1, 2], [2, 0, 0]])[n]
        return {"targets": targets, "weights": (targets > 0).astype(np.float32)}


def examples(objective=None, **given):
    wanted = {field.name: None for field in dataclasses.fields(base.Examples)}
    wanted |= {"objective": objective or mlm.Objective(), "codec": Codec(), "rows": 2}
    return base.Examples(**wanted | given)


def functions(**given):
    wanted = {field.name: None for field in dataclasses.fields(base.Functions)}
    return base.Functions(**wanted | given)


def run(evaluator, known, notes=None, **given):
    out = base.Outputs(Path("unused"), (notes if notes is not None else []).append)
    return dict(evaluator.run(known, functions(**given), out))


def test_means_are_sums_by_counts_not_means_of_batches():
    batches = [
        {"mlm_loss": (6.0, 3.0), "nsp_loss": (2.0, 2.0), "mlm_accuracy": (3.0, 3.0)},
        {"mlm_loss": (4.0, 1.0), "nsp_loss": (0.0, 2.0), "mlm_accuracy": (0.0, 1.0)},
    ]
    known = examples(batches=lambda **_: iter(batches))
    found = run(mean.Evaluator(resamples=0), known, metrics=lambda batch: batch)
    assert found["mlm_loss"] == 10 / 4
    assert found["nsp_loss"] == 2 / 4
    assert found["loss"] == 3.0
    assert found["mlm_accuracy"] == 3 / 4
    assert found["perplexity"] == pytest.approx(math.exp(2.5))


def written_out(parts, resamples=1000, seed=0):
    """The bounds of the bootstrap interval of a ratio of two sums over examples."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = parts[rng.integers(len(parts), size=len(parts))]
        found.append(drawn[:, 0].sum() / drawn[:, 1].sum())
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("pack", tiny.few([True, False], {False}))
def test_the_interval_is_a_bootstrap_over_rows_written_out(tmp_path, pack):
    """Rows are drawn as the set has them, whatever their order in the batches."""
    held = {"sources": [{"name": "memory", "items": tiny.documents(9, seed=1)}]}
    held |= {"pack": pack, "buckets": 1 if pack else 8}
    config = tiny.config(
        model=tiny.tree()["model"] | {"kind": "decoder", "token_types": 0},
        objective={"name": "causal_lm"},
        evals={"x": {"evaluator": "mean", "data": held, "batch_size": 4}},
    )
    corpus, program = tiny.program(config, tmp_path)
    params = program.init(jax.random.key(0))
    [evaluate] = evaluations.open_evaluators(config, tmp_path, corpus, program).values()
    found = evaluate(params, 0)
    stream, rows = evaluate.examples.stream, []
    for n in range(len(stream)):
        example = stream.example(n)
        row = {k: v[None] for k, v in example.items() if k != "example_ids"}
        sums = program.metrics(params, row)
        rows.append([float(x) for k in ("lm_loss", "lm_accuracy") for x in sums[k]])
    table, sizes = np.asarray(rows), stream.indices[0].fields
    assert len(table) > 4 and len(table) % 4
    bits = np.stack([table[:, 0] / math.log(2), sizes["bytes"]], axis=1)
    words = np.stack([table[:, 0], sizes["words"]], axis=1)
    expected = {
        "loss": written_out(table[:, :2]),
        "lm_accuracy": written_out(table[:, 2:]),
        "perplexity": np.exp(written_out(table[:, :2])),
        "bits_per_byte": written_out(bits),
        "word_perplexity": np.exp(written_out(words)),
    }
    for name, ends in expected.items():
        ours = [found[f"x/{name}_low"], found[f"x/{name}_high"]]
        np.testing.assert_allclose(ours, ends, rtol=1e-5, err_msg=name)
        assert ours[0] < found[f"x/{name}"] < ours[1]
    promised = evaluate.evaluator.yields(corpus.objective)
    assert {name.removeprefix("x/") for name in found} <= {*promised}
    none = dataclasses.replace(evaluate.evaluator, resamples=0)
    plain = dataclasses.replace(evaluate, evaluator=none)(params, 0)
    assert plain == {
        k: v for k, v in found.items() if not k.endswith(("_low", "_high"))
    }


def test_what_is_no_sum_over_rows_has_no_interval():
    """A metric of the whole batch, and one that is not finite."""
    notes: list[str] = []
    terms = {"mlm_loss": (6.0, 3.0), "mlm_largest": (2.0, 2.0), "mlm_x": (np.inf, 2.0)}
    parts = {
        "mlm_loss": ([4.0, 2.0], [2.0, 1.0]),
        "mlm_largest": ([2.0, 1.0], [1.0, 1.0]),
        "mlm_x": ([np.inf, 1.0], [1.0, 1.0]),
    }
    stream = types.SimpleNamespace(
        evaluated=lambda rows: rows, from_longest=lambda rows: None
    )
    known = examples(batches=lambda **_: iter([{}]), stream=stream, memo={})
    for _ in range(2):
        found = run(
            mean.Evaluator(resamples=99),
            dataclasses.replace(known, codec=Codec(unk_id=None)),
            notes,
            by_row=lambda batch: (terms, parts),
        )
    assert (found["mlm_loss_low"], found["mlm_loss_high"]) == (2.0, 2.0)
    for name in ("mlm_largest", "mlm_x"):
        assert math.isnan(found[f"{name}_low"]) and math.isnan(found[f"{name}_high"])
    assert notes == ["mlm_largest has no interval: the rows do not add up to it"]


def test_the_unigram_baseline_by_hand():
    counts = np.array([50.0, 5.0, 2.0, 0.0])  # special tokens do not count
    known = examples(stream=Stream(), train_counts=lambda: counts.copy())
    p = np.array([6.0, 3.0, 1.0]) / 10
    expected = -(2 * math.log(p[0]) + 2 * math.log(p[1])) / 4
    assert mean.unigram_loss(known) == pytest.approx(expected)


def test_a_special_token_that_is_a_target_has_its_share():
    counts = np.array([4.0, 5.0, 2.0])
    codec = Codec(frozenset({2}))
    known = examples(stream=Stream(), codec=codec, train_counts=lambda: counts.copy())
    p = np.array([5.0, 6.0, 3.0]) / 14
    expected = -(2 * math.log(p[1]) + 2 * math.log(p[2])) / 4
    assert mean.unigram_loss(known) == pytest.approx(expected)


def test_bits_per_byte_are_of_the_rows_that_count():
    sizes = {"bytes": np.array([3.0, 5.0, 100.0]), "words": np.array([1.0, 2.0, 9.0])}
    index = types.SimpleNamespace(fields=sizes)
    known = examples(
        causal_lm.Objective(),
        stream=types.SimpleNamespace(indices=(index,)),
        batches=lambda **_: iter([{"lm_loss": (12.0, 6.0), "end_nats": (4.0, 2.0)}]),
    )
    found = run(mean.Evaluator(resamples=0), known, metrics=lambda batch: batch)
    assert found["bits_per_byte"] == pytest.approx(12.0 / math.log(2) / 8)
    assert found["bits_per_byte_without_end"] == pytest.approx(8.0 / math.log(2) / 8)
    assert found["word_perplexity"] == pytest.approx(math.exp(12.0 / 3))
    assert found["loss"] == 2.0
    known = dataclasses.replace(known, objective=mlm.Objective())
    masked = {"mlm_loss": (1.0, 1.0)}
    found = run(mean.Evaluator(resamples=0), known, metrics=lambda batch: masked)
    assert "bits_per_byte" not in found


def test_one_model_measured_by_characters_and_by_words_has_one_perplexity(tmp_path):
    """The same probability of a text, whatever its tokens; of the words as written."""
    lines = ("the old dog runs\n", "a cat  sees the bird\n", "now\n")
    text, nats, found = "".join(lines), 50.0, {}
    for kind in ("char", "word"):
        tokenizer = {"name": "word", "kind": kind, "specials": ("unk", "bos", "eos")}
        settings = tiny.config(
            tokenizer=tokenizer | {"line_ends": kind == "word"},
            objective={"name": "causal_lm", "eos": False},
            data={"sources": [{"name": "memory", "items": ({"text": text},)}]},
            evals={},
        )
        corpus = runs.open_corpus(settings, tmp_path / kind, lambda line: None)
        rows = [corpus.stream.example(n) for n in range(len(corpus.stream))]
        targets = sum(row["weights"].sum() for row in rows)
        known = examples(
            corpus.objective,
            codec=corpus.codec,
            stream=corpus.stream,
            rows=len(rows),
            batches=lambda rows=rows, **_: iter(rows),
        )

        def metrics(batch, targets=targets):
            count = batch["weights"].sum()
            return {"lm_loss": (nats * count / targets, count)}

        found[kind] = run(mean.Evaluator(resamples=0), known, metrics=metrics)
        words = len(text.split()) + len(lines)
        assert targets == (len(text) if kind == "char" else words)
        assert found[kind]["word_perplexity"] == pytest.approx(math.exp(nats / words))
        bits = nats / math.log(2) / len(text)
        assert found[kind]["bits_per_byte"] == pytest.approx(bits)
    # By words with their ends it is the perplexity of a token.
    word = found["word"]
    assert word["word_perplexity"] == pytest.approx(word["perplexity"])
    assert found["char"]["perplexity"] < word["perplexity"]


def test_targets_that_are_the_unknown_token_are_counted_and_told():
    batches = [
        {"targets": np.array([[1, 4, 1]]), "weights": np.array([[1.0, 1.0, 0.0]])},
        {"targets": np.array([[1, 5, 6]]), "weights": np.array([[1.0, 1.0, 0.0]])},
    ]
    notes: list[str] = []
    found = run(
        mean.Evaluator(resamples=0),
        examples(codec=Codec(unk_id=1), batches=lambda **_: iter(batches)),
        notes,
        metrics=lambda batch: {"mlm_loss": (2.0, 2.0)},
    )
    assert found["unknown_share"] == 2 / 4
    assert notes == [
        "unknown: 2 of 4 targets (50.0%) are the tokenizer's unknown token"
    ]
    notes.clear()
    run(
        mean.Evaluator(resamples=0),
        examples(codec=Codec(unk_id=9), batches=lambda **_: iter(batches)),
        notes,
        metrics=lambda batch: {"mlm_loss": (2.0, 2.0)},
    )
    assert not notes


def test_intervals_of_brackets_are_over_sentences():
    """right, found, wanted, exact, 1, words, nats and bytes of each sentence."""
    rng = np.random.default_rng(2)
    parts = rng.integers(1, 9, size=(7, 8)).astype(float)
    found = dict(brackets.Evaluator(seed=5)._bounds(parts))
    for name, over, under in (
        ("precision", parts[:, 0], parts[:, 1]),
        ("recall", parts[:, 0], parts[:, 2]),
        ("f1", 2 * parts[:, 0], parts[:, 1] + parts[:, 2]),
        ("exact", parts[:, 3], parts[:, 4]),
        ("loss", parts[:, 6], parts[:, 5]),
        ("bits_per_byte", parts[:, 6] / math.log(2), parts[:, 7]),
    ):
        ends = [found[f"{name}_low"], found[f"{name}_high"]]
        wanted = written_out(np.stack([over, under], axis=1), seed=5)
        np.testing.assert_allclose(ends, wanted, err_msg=name)
    assert {*found} < {*brackets.Evaluator().yields(None)}
