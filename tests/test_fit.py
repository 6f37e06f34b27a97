"""job=fit: passes, evaluations, stops, what is refused; n-grams in each command."""

import collections
import contextlib
import io
import math

import numpy as np
import pytest

from lm import evaluate, fit, main
from lm import run as runs
from lm.config import resolve as configs
from lm.errors import ConfigError, DataError
from tests import fitted, tiny


def settings(arg="", **changes):
    """The tiny config, with changes by dotted path, dots as `__`."""
    config = fitted.get_config(arg)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = config
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return configs.resolve(config)


def run(config, workdir, **keywords):
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()) as said, tiny.some_devices(config):
        code = fit.fit(config, workdir, **keywords)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def trigrams(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trigrams") / "run"
    assert run(settings(), workdir)[0] == 0
    return workdir


def encoded(codec, texts):
    ends = [i for i in (codec.bos_id, codec.eos_id) if i is not None]
    assert len(ends) == 2
    return [[ends[0], *codec.encode(t["text"]), ends[1]] for t in texts]


def test_perplexity_is_that_of_a_written_out_loop(trigrams):
    config = settings()
    corpus = runs.open_corpus(config, trigrams, print)
    codec, begin = corpus.codec, "begin"
    train = encoded(codec, config.data.sources[0]["items"])
    asked = encoded(codec, config.evals.heldout.data.sources[0]["items"])
    counts, totals = collections.Counter(), collections.Counter()
    for text in train:
        for a, b, c in zip([begin, *text], text, text[1:]):
            counts[a, b, c] += 1
            totals[a, b] += 1
    words = codec.vocab_size - (codec.pad_id is not None) - (codec.bos_id is not None)
    nats = [
        -math.log((counts[a, b, c] + 0.1) / (totals[a, b] + 0.1 * words))
        for text in asked
        for a, b, c in zip([begin, *text], text, text[1:])
    ]
    (row,) = tiny.rows(trigrams)
    assert row["heldout/loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert row["heldout/perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert row["heldout/loss_low"] < row["heldout/loss"] < row["heldout/loss_high"]
    assert row["train/tokens"] == sum(len(text) - 1 for text in train)
    assert row["train/ngrams"] == len(counts)


@pytest.mark.parametrize("smoothing", ["kneser_ney", "witten_bell", "stupid_backoff"])
def test_other_smoothing_in_batches_of_any_size(smoothing, tmp_path):
    assert run(settings(smoothing), tmp_path / "a")[0] == 0
    other = settings(smoothing, batch_size=6, mesh={"data": 2})
    assert run(other, tmp_path / "b")[0] == 0
    assert tiny.state_bits(tmp_path / "a") == tiny.state_bits(tmp_path / "b")
    (row,) = tiny.rows(tmp_path / "a")
    assert row["train/loss"] < row["heldout/loss"] < 6
    assert row["heldout/perplexity"] == pytest.approx(math.exp(row["heldout/loss"]))

    import lm

    with tiny.some_devices(settings()):
        assert all(lm.open(tmp_path / "a").generate(["the old"], max_tokens=5))


def test_the_same_command_again_is_finished(trigrams):
    before = tiny.raw_rows(trigrams), tiny.state_bits(trigrams)
    code, said = run(settings(), trigrams)
    assert code == 0 and "finished at step 1" in said
    assert (tiny.raw_rows(trigrams), tiny.state_bits(trigrams)) == before


def test_batches_and_devices_change_no_count(trigrams, tmp_path):
    other = settings(batch_size=6, mesh={"data": 2})
    assert run(other, tmp_path)[0] == 0
    ours, theirs = tiny.state_bits(tmp_path), tiny.state_bits(trigrams)
    assert ours == theirs


def test_a_run_is_evaluated_with_another_k(trigrams, capsys):
    flags = [f"--workdir={trigrams}", "--config.model.k=3", "--config.mesh.data=8"]
    assert evaluate.main(flags) == 0
    other = float(capsys.readouterr().out.split('"heldout/loss": ')[1].split(",")[0])
    (row,) = tiny.rows(trigrams)
    assert other < row["heldout/loss"] - 0.01  # The texts are drawn word by word.


def test_expectation_maximisation_never_lowers_the_likelihood(tmp_path):
    config = settings("mixture", mesh={"data": 2})
    assert run(config, tmp_path)[0] == 0
    rows = tiny.rows(tmp_path)
    losses = [row["train/loss"] for row in rows]
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(after < before for before, after in zip(losses, losses[1:])), losses
    assert [row["step"] for row in rows if "heldout/loss" in row] == [2, 4, 6]
    alone = tmp_path / "alone"
    assert run(settings("mixture", batch_size=60), alone)[0] == 0
    for row, other in zip(rows, tiny.rows(alone), strict=True):
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)


def test_early_stopping_and_the_best_checkpoint(tmp_path):
    config = settings(
        "mixture",
        steps=30,
        evals__heldout__every=1,
        checkpoint__every=30,
        checkpoint__best="heldout/loss",
        stop={"metric": "heldout/loss", "patience": 1, "min_delta": 0.05},
    )
    assert run(config, tmp_path)[0] == 0
    rows = tiny.rows(tmp_path)
    losses = [row["heldout/loss"] for row in rows]
    assert 1 < len(rows) < 30
    assert losses[-1] > losses[-2] - 0.05
    assert (tmp_path / "checkpoints" / "best").exists()
    code, said = run(config, tmp_path)
    assert code == 0 and "finished" in said


def test_more_passes_go_on_with_the_checkpoint(tmp_path):
    assert run(settings("mixture", steps=3), tmp_path / "moved")[0] == 0
    code, said = run(settings("mixture"), tmp_path / "moved")
    assert code == 0 and "continuing from step 3" in said
    assert run(settings("mixture"), tmp_path / "straight")[0] == 0
    assert tiny.state_bits(tmp_path / "moved") == tiny.state_bits(tmp_path / "straight")


def test_durations_are_passes(tmp_path):
    config = settings("mixture", steps="2 epochs", checkpoint={"every": "50%"})
    assert run(config, tmp_path)[0] == 0
    assert len(tiny.rows(tmp_path)) == 2
    assert (tmp_path / "checkpoints" / "1").exists()


def test_unknown_words_are_a_word_of_their_own(tmp_path):
    items = ({"text": "the zebra sees the old dog and the cat"}, {"text": "zebra"})
    heldout = {"sources": [{"name": "memory", "items": items}]}
    config = settings(evals__heldout__data=heldout)
    assert run(config, tmp_path)[0] == 0
    (row,) = tiny.rows(tmp_path)
    assert row["heldout/unknown_share"] == pytest.approx(2 / 12)  # with two ends
    assert math.isfinite(row["heldout/loss"])


def test_the_python_face_continues_a_text(trigrams):
    import lm

    with tiny.some_devices(settings()):
        opened = lm.open(trigrams)
        found = opened.generate(["the old", "a dog"], max_tokens=5)
        loss = opened.evaluate("heldout")["heldout/loss"]
    assert all(found)
    assert loss == pytest.approx(tiny.rows(trigrams)[0]["heldout/loss"], rel=1e-6)


def test_an_evaluation_that_fails_costs_no_pass(trigrams, tmp_path, monkeypatch):
    from lm.evaluators.mean import Evaluator

    def fails(*arguments):
        raise DataError("heldout", "nothing", "something")
        yield

    with monkeypatch.context() as broken:
        broken.setattr(Evaluator, "run", fails)
        with pytest.raises(DataError, match="heldout"):
            run(settings(), tmp_path)
    assert (tmp_path / "checkpoints" / "1").exists()
    broken_pass = lambda *arguments: pytest.fail("the pass is made again")  # noqa: E731
    monkeypatch.setattr(fit, "sum_up", broken_pass)
    code, said = run(settings(), tmp_path)
    assert code == 0 and "continuing from step 1" in said
    assert tiny.rows(tmp_path) == tiny.rows(trigrams)
    assert tiny.state_bits(tmp_path) == tiny.state_bits(trigrams)


def test_a_metric_that_is_followed_and_no_number_is_warned_of(tmp_path, monkeypatch):
    from lm.evaluators.mean import Evaluator

    monkeypatch.setattr(Evaluator, "run", lambda *_: [("loss", np.float32("nan"))])
    code, said = run(settings(checkpoint__best="heldout/loss"), tmp_path)
    assert code == 0
    assert "warning: step 1: heldout/loss is nan, which is never better" in said
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_a_weight_of_a_source_is_refused(tmp_path):
    source = {"name": "memory", "items": tiny.documents(5), "weight": 2.0}
    with pytest.raises(ConfigError, match="weight"):
        run(settings(data__sources=[source]), tmp_path)


def test_data_without_a_target_are_refused(tmp_path):
    source = {"name": "memory", "items": ({"text": "dog"},)}
    config = settings(
        data__sources=[source], objective__bos=False, objective__eos=False
    )
    with pytest.raises(DataError, match=r"data\.sources"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("smoothing", "prune"),
    [
        ("kneser_ney", (1, 2)),
        ("kneser_ney", (0, 2, 1)),
        ("kneser_ney", (0, 1, 1, 1)),
        ("add_k", (0, 1)),
    ],
)
def test_pruning_that_makes_no_model_is_refused(smoothing, prune, tmp_path):
    config = settings(model__smoothing=smoothing, model__prune=prune)
    with pytest.raises(ConfigError, match=r"model\.prune"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("optim.lr=0.1", "optim"),
        ("grad_accum=2", "grad_accum"),
        ("job=fot", "did you mean fit"),
        ("job=train", "model.name: found 'ngram', which cannot give the hidden state"),
        ("model={'name': 'rnn'}", "which cannot be fitted by passes"),
        ("objective.name=mlm", "which cannot see the whole text"),
        ("model.order=7", "model.order"),
        ("model.k=0", "model.k"),
        ("model.smoothing=good_turing", "model.smoothing"),
        ("model.prune=(0, -1)", "model.prune"),
    ],
)
def test_options_of_another_job_are_refused(change, line, tmp_path, capsys):
    flags = ["--config=tests/fitted.py", f"--workdir={tmp_path}", f"--config.{change}"]
    assert main.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error[config]") and line in said and said.count("\n") == 1
