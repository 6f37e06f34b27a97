"""Kinds of labels: their losses by hand, weights, smoothing, and what is refused."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import run as runs
from lm.data import labels
from lm.data.sources.base import Record
from lm.errors import ConfigError, DataError
from lm.main import main
from lm.objectives.classification import Objective
from lm.training import step
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
IDS = jnp.asarray([0, 1, 2, 2, 1, 0])


def losses(targets, train=True, **fields):
    kind = Objective(classes=3, **fields)._kind
    return np.asarray(kind.losses(LOGITS[:, : kind.outputs], targets, train=train))


def test_the_losses_are_those_of_optax():
    plain = optax.softmax_cross_entropy_with_integer_labels(LOGITS, IDS)
    np.testing.assert_allclose(losses(IDS), plain, rtol=1e-5)
    smooth = optax.smooth_labels(jax.nn.one_hot(IDS, 3), 0.2)
    wanted = optax.softmax_cross_entropy(LOGITS, smooth)
    np.testing.assert_allclose(losses(IDS, label_smoothing=0.2), wanted, rtol=1e-5)
    assert (losses(IDS, False, label_smoothing=0.2) == losses(IDS)).all()
    p = np.exp(-np.asarray(plain))
    found = losses(IDS, focal=2.0)
    np.testing.assert_allclose(found, (1 - p) ** 2 * -np.log(p), rtol=1e-4)

    several = jax.nn.one_hot(IDS, 3).at[0].set(1)
    each = optax.sigmoid_binary_cross_entropy(LOGITS, several)
    found = losses(several, kind="sigmoid")
    np.testing.assert_allclose(found, each.mean(1), rtol=1e-5)
    each = optax.sigmoid_focal_loss(LOGITS, several, gamma=2.0)
    found = losses(several, kind="sigmoid", focal=2.0)
    np.testing.assert_allclose(found, each.mean(1), rtol=1e-4)
    each = optax.sigmoid_binary_cross_entropy(LOGITS, 0.8 * several + 0.1)
    found = losses(several, kind="sigmoid", label_smoothing=0.2)
    np.testing.assert_allclose(found, each.mean(1), rtol=1e-5)

    scores = jnp.asarray([0.0, 5, 2.5, 1, 4, 3])
    found = losses(scores, kind="regression", scale=5.0)
    wanted = (np.asarray(LOGITS[:, 0]) - np.asarray(scores) / 5) ** 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_focal_loss_has_gradients_where_it_is_0():
    sure = jnp.asarray([[90.0, 0.0, 0.0]])
    kind = Objective(classes=3, focal=1.0)._kind

    def loss(logits):
        return kind.losses(logits, jnp.asarray([0]), train=True).sum()

    assert np.isfinite(np.asarray(jax.grad(loss)(sure))).all()


ITEMS = tuple(
    {"text": f"{word} dog", "label": label, "weight": weight}
    for word, label, weight in (
        ("old", "a", 1),
        ("new", "a", 3),
        ("red", "a", 1),
        ("small", "b", 1),
    )
)


def opened(folder, items=ITEMS, **fields):
    objective = {"name": "classification", "labels": ("a", "b"), **fields}
    source = {"sources": [{"name": "memory", "items": items}], "pack": False}
    config = tiny.config(objective=objective, data=source, evals={})
    runs.check(config)
    with tiny.some_devices(config):
        return tiny.program(config, folder)


@pytest.mark.slow
def test_the_loss_is_weighted_by_class_and_row_and_the_figures_are_not(tmp_path):
    """The loss is sum of w l / sum of w, in training alone."""
    plain, program = opened(tmp_path / "plain")
    batch = tiny.batch(plain)
    params = program.init(jax.random.key(0))
    functions = step.make(program.model, plain.objective)
    total, count = jax.jit(functions.metrics)(params, batch)["classify_loss"]
    assert count == 4
    logits = jax.jit(functions.predict)(params, batch)[1]["logits"]
    each = np.asarray(
        optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    )
    assert float(total) == pytest.approx(each.sum(), rel=1e-5)
    order = [plain.stream.locate(n)[2] for n in range(4)]
    balanced = [4 / 2 / 3, 4 / 2 / 3, 4 / 2 / 3, 4 / 2 / 1]
    for name, fields, weights in (
        ("balanced", {"class_weights": "balanced"}, balanced),
        ("named", {"class_weights": {"b": 5}, "weight": "weight"}, [1, 3, 1, 5]),
    ):
        corpus, _ = opened(tmp_path / name, **fields)
        own = tiny.batch(corpus)
        task, wanted = corpus.objective, np.asarray(weights, np.float32)[order]
        np.testing.assert_allclose(own["loss_weights"], wanted, rtol=1e-6)
        assert float(task.counts(own)["classify"]) == pytest.approx(wanted.sum())
        measure = jax.jit(step.make(program.model, task).metrics)
        figures = measure(params, own)["classify_loss"]
        assert [*map(float, figures)] == [float(total), 4.0]

        def ask(model, task=task, batch=own):
            return task.loss(model, batch, train=False)["classify"]

        found = jax.jit(
            lambda params, ask=ask: program.model.apply({"params": params}, method=ask)
        )(params)
        assert float(found[0]) == pytest.approx((wanted * each).sum(), rel=1e-5)
        assert float(found[1]) == pytest.approx(wanted.sum())


def test_several_labels_and_numbers_are_read(tmp_path):
    items = ({"text": "a", "label": "b, a"}, {"text": "b", "label": ""})
    corpus, _ = opened(tmp_path / "several", items, kind="sigmoid")
    rows = {tuple(corpus.stream.example(n)["labels"].tolist()) for n in range(2)}
    assert rows == {(1.0, 1.0), (0.0, 0.0)}
    assert corpus.objective.label_of(np.array([0.0, 1.0])) == ["b"]
    assert "labels a 1, b 1" in corpus.describe("short")
    items = ({"text": "a", "label": "2.5"}, {"text": "b", "label": 4})
    options = {"kind": "regression", "labels": (), "between": (0.0, 5.0)}
    corpus, program = opened(tmp_path / "number", items, **options)
    assert {float(corpus.stream.example(n)["labels"]) for n in range(2)} == {2.5, 4.0}
    assert program.params["heads"]["classify"]["kernel"].shape[-1] == 1
    assert "labels 2.5 to 4, mean 3.25" in corpus.describe("short")


@pytest.mark.parametrize(
    "label, found",
    [
        ("5.5", "expected a number from 0 to 5"),
        ("nan", "found label 'nan'"),
        (True, "found label True"),
        ("high", "found label 'high'"),
    ],
)
def test_a_score_out_of_range_names_the_record(label, found):
    number = labels.Number("label", (0.0, 5.0))
    with pytest.raises(DataError, match=rf"dev.tsv:7.*{found}"):
        number.of(Record({"label": label}, "dev.tsv:7"))


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"labels": ("a", "b", "c")}, "objective.classes: found 2 with 3"),
        ({"class_weights": {"c": 1}}, "class_weights: found .'c'"),
        ({"class_weights": "balance"}, "class_weights: found 'balance'"),
        ({"class_weights": {"a": -1.0}}, "found a=-1"),
        ({"class_weights": "balanced", "kind": "sigmoid"}, "class_weights"),
        ({"focal": 1.0, "label_smoothing": 0.1}, "objective.focal"),
        ({"kind": "regression"}, "objective.labels"),
        ({"kind": "regression", "labels": (), "between": (5.0, 0.0)}, "between"),
        ({"label": None}, "objective.label: found None"),
    ],
)
def test_fields_that_contradict_each_other(fields, error):
    objective = {"name": "classification", "labels": ("a", "b"), **fields}
    with pytest.raises(ConfigError, match=error):
        runs.check(tiny.config(objective=objective, evals={}, data__pack=False))


@pytest.mark.parametrize(
    ("config", "dev", "found"),
    [
        ("sst2", "good\t1\nbad\t2\n", "dev:2: found label .2., expected a whole"),
        ("sst2", "good\t1\nbad\n", "dev:2: found 1 cell"),
        ("stsb", "a,b,4\na,c,5.5\n", "dev:2: found score .5.5., expected .* from 0"),
        ("stsb", "a,b,4\na,c,high\n", "dev:2: found score 'high', expected a number"),
        ("stsb", "a,b\n", "dev:1: found 2 cells"),
    ],
)
def test_a_label_that_does_not_fit_ends_the_run_in_a_line(
    config, dev, found, tmp_path, capsys
):
    """Also one that training lacks: before the first step, with exit code 3."""
    suffix = {"sst2": ".tsv", "stsb": ".csv"}[config]
    good = {"sst2": "fine\t1\npoor\t0\n", "stsb": "a,b,4\na,c,1\n"}[config]
    place = {"sst2": "", "stsb": "stsb-en-"}[config]
    for name in ("train", "dev", "test"):
        text = dev if name == "dev" else good
        (tmp_path / f"{place}{name}{suffix}").write_text(text)
    argument = f"dir={tmp_path},scratch"
    argv = [f"--config={ROOT}/configs/{config}.py:{argument}", "--config.steps=1"]
    argv += ["--config.tokenizer.vocab_size=60", f"--workdir={tmp_path}/run"]
    assert main(argv) == 3
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert re.search(found, line.replace(suffix, "")), line
