"""Objective contrastive: rows of texts, pooled vectors, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import run as runs
from lm.checks import invariances
from lm.errors import ConfigError, DataError
from lm.objectives import contrastive as contrastive_task
from lm.ops import contrastive
from lm.training import step
from tests import tiny

RNG = np.random.default_rng(0)
TEXTS = [tiny.sentence(RNG) for _ in range(16)]
LONG = [d["text"] for d in tiny.documents(8)]
ITEMS = tuple(
    {"a": TEXTS[n], "b": TEXTS[n + 8], "c": LONG[n], "score": n % 6} for n in range(8)
)


def settings(items=ITEMS, *, buckets=1, **objective):
    data = {"sources": [{"name": "memory", "items": items}], "pack": False}
    return tiny.config(
        objective={"name": "contrastive", "texts": ("a", "b"), **objective},
        data=data | {"buckets": buckets},
        evals={},
        model__init_std=0.5,
        model__dropout=0.0,
        model__attention={"dropout": 0.0},
        seq_len=16,
    )


@pytest.fixture
def opened(tmp_path):
    def open_(**changes):
        config = settings(**changes)
        corpus, program = tiny.program(config, tmp_path)
        return corpus, program.model, program.init(jax.random.key(0))

    return open_


def vectors_of(objective, model, params, batch, **keywords):
    """(B, K, D), before they are normalised."""
    objective = dataclasses.replace(objective, normalize=False)

    def pooled(model, batch):
        return objective.predict(model, batch)["embeddings"]

    return model.apply({"params": params}, batch, method=pooled, **keywords)


@pytest.mark.parametrize("pooling", tiny.few(contrastive_task.POOLED, {"mean"}))
def test_a_vector_is_pooled_over_the_tokens_of_its_text_alone(opened, pooling):
    """Each text by itself, without padding, gives the same as in its row."""
    corpus, model, params = opened(texts=("a", "b", "c"), pooling=pooling)
    batch, codec = tiny.batch(corpus), corpus.codec
    found = vectors_of(corpus.objective, model, params, batch)
    states = jax.jit(lambda b: model.apply({"params": params}, b, train=False))
    for n in range(4):
        _, _, row = corpus.stream.locate(n)
        for k, name in enumerate("abc"):
            ids = codec.encode(ITEMS[row][name])[:14]
            ids = jnp.asarray([[codec.cls_id, *ids, codec.sep_id]])
            place = jnp.arange(ids.shape[1])[None]
            ones = jnp.ones_like(ids)
            one = {"inputs": ids, "positions": place, "segment_ids": ones}
            hidden = states(one | {"token_types": 0 * ones})[0]
            wanted = {
                "mean": hidden.mean(0),
                "cls": hidden[0],
                "max": hidden.max(0),
                "last": hidden[-1],
            }[pooling]
            np.testing.assert_allclose(found[n, k], wanted, atol=2e-5)


def loss_of(objective, model, params, batch, train=True):
    rngs = {"dropout": jax.random.key(1)} if train else {}

    def terms(model, batch):
        total, count = objective.loss(model, batch, train=train)["contrastive"]
        return total / count

    return model.apply({"params": params}, batch, method=terms, rngs=rngs)


def test_the_loss_compares_all_texts_of_the_batch(opened):
    corpus, model, params = opened(texts=("a", "b", "c"), dims=(4,))
    batch = tiny.batch(corpus)
    vectors = vectors_of(corpus.objective, model, params, batch)
    means = []
    for dim in (4, 16):
        parts = [v[..., :dim] for v in vectors.swapaxes(0, 1)]
        unit = [
            v / np.linalg.norm(v, axis=1, keepdims=True) for v in map(np.array, parts)
        ]
        scores = 20 * unit[0] @ np.concatenate(unit[1:]).T
        log_total = np.log(np.exp(scores.astype(np.float64)).sum(1))
        means.append(np.mean(log_total - np.diag(scores)))
    found = loss_of(corpus.objective, model, params, batch)
    assert float(found) == pytest.approx(np.mean(means), rel=1e-5)


def test_eight_devices_are_one_with_the_whole_batch(opened):
    """Negatives come from all devices; with fewer of them the loss is another one."""
    corpus, model, params = opened(texts=("a", "b", "c"))
    batch = tiny.batch(corpus, rows=8)
    loss = functools.partial(loss_of, corpus.objective, model)
    compiled = jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, train=False)))
    alone, gradient = compiled(params, batch)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    copied = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    together, theirs = compiled(copied, spread)
    assert len(spread["inputs"].sharding.device_set) == 8
    assert float(together) == pytest.approx(float(alone), rel=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-3)
    halves = [{k: v[n : n + 4] for k, v in batch.items()} for n in (0, 4)]
    parted = np.mean([loss(params, half, train=False) for half in halves])
    assert float(alone) > parted + 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_two_views_of_simcse_differ_by_dropout_alone(opened, dropout):
    corpus, model, params = opened(texts=("a", "a"))
    model = model.clone(dropout=dropout)
    batch = tiny.batch(corpus)

    def views(model, batch):
        return corpus.objective._read(model, batch, True)

    rngs = {"dropout": jax.random.key(1)}
    found = model.apply({"params": params}, batch, method=views, rngs=rngs)
    gap = np.abs(found[:, 0] - found[:, 1]).max(-1)
    assert (gap < 1e-5).all() if dropout == 0 else (gap > 1e-2).all()
    assert corpus.objective.columns() == ("a",)


def test_equal_positives_are_masked(opened):
    """Four rows with one positive have no negative at all."""
    items = tuple(item | {"b": "the old dog."} for item in ITEMS)
    corpus, model, params = opened(items=items)
    loss = loss_of(corpus.objective, model, params, tiny.batch(corpus))
    assert float(loss) == pytest.approx(0, abs=1e-5)


def test_short_rows_have_the_vectors_of_padded_ones(opened):
    corpus, model, params = opened(buckets=4)
    full = tiny.batch(corpus)
    assert full["inputs"].shape == (4, 32)
    used = full["segment_ids"].reshape(4, 16, 2).sum(1).max(-1)
    fits = [n for n in range(4) if used[n] <= 12]
    assert fits
    short = [corpus.stream.example(n, (24,)) for n in fits]
    names = [name for name in short[0] if name != "example_ids"]
    batch = {name: jnp.stack([one[name] for one in short]) for name in names}
    assert batch["inputs"].shape[1] == 24
    found = vectors_of(corpus.objective, model, params, batch)
    wanted = vectors_of(corpus.objective, model, params, full)[np.array(fits)]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_padding_at_the_end_of_a_row_changes_nothing(opened):
    """Also where it is no multiple of the texts."""
    corpus, model, params = opened(texts=("a", "b", "c"))
    batch = tiny.batch(corpus)
    longer = invariances.padded(jax.device_get(batch), 4)
    assert longer["inputs"].shape == (4, 52)
    longer = {name: jnp.asarray(array) for name, array in longer.items()}
    found = vectors_of(corpus.objective, model, params, longer)
    wanted = vectors_of(corpus.objective, model, params, batch)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_losses_of_scores(opened):
    corpus, model, params = opened(label="score", between=(0, 5), kind="cosine")
    batch = tiny.batch(corpus)
    vectors = vectors_of(corpus.objective, model, params, batch)
    unit = contrastive.unit(vectors)
    cosines = jnp.sum(unit[:, 0] * unit[:, 1], -1)
    functions = step.make(model, corpus.objective)
    _, found = functions.predict(params, batch)
    np.testing.assert_allclose(found["scores"], cosines, atol=1e-6)
    np.testing.assert_allclose(found["embeddings"], unit, atol=1e-6)
    loss = loss_of(corpus.objective, model, params, batch)
    wanted = np.mean(np.square(cosines - batch["labels"] / 5))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    for n in range(4):
        _, _, row = corpus.stream.locate(n)
        assert batch["labels"][n] == row % 6
    ranked = dataclasses.replace(corpus.objective, kind="cosent")
    loss = loss_of(ranked, model, params, batch)
    wanted = contrastive.cosent(cosines, batch["labels"], jnp.ones(4), 20.0)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_grad_cache_has_the_gradient_of_the_whole_batch(opened, monkeypatch, dropout):
    """Beside the batch at once, and with dropout beside one pass of equal masks."""
    corpus, model, params = opened(texts=("a", "b", "c"), learn_scale=True)
    batch, model = tiny.batch(corpus, rows=8), model.clone(dropout=dropout)
    cached = dataclasses.replace(corpus.objective, grad_cache=2)

    def gradient(objective):
        loss = functools.partial(loss_of, objective, model, batch=batch)
        return jax.jit(jax.value_and_grad(lambda p: loss(params=p)))(params)

    found, grads = gradient(cached)
    if dropout:
        remat = contrastive_task.nn.remat  # The model's own has options.

        def once(call, **options):
            return remat(call, **options) if options else call

        monkeypatch.setattr(contrastive_task.nn, "remat", once)
    wanted, theirs = gradient(cached if dropout else corpus.objective)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs)):
        assert np.any(other)
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)


def test_grad_cache_keeps_the_activations_of_a_part_alone(opened):
    """What the backward pass keeps of the whole batch are vectors and inputs."""
    corpus, model, params = opened(texts=("a", "b"))
    batch = tiny.batch(corpus, rows=8)

    def kept(size):
        objective = dataclasses.replace(corpus.objective, grad_cache=size)
        loss = functools.partial(loss_of, objective, model, batch=batch)
        _, back = jax.vjp(lambda p: loss(params=p), params)
        leaves = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "size")]
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        return sum(leaf.size for leaf in leaves) - weights

    assert kept(2) < kept(0) / 4


def test_triplets_by_each_similarity(opened):
    corpus, model, params = opened(texts=("a", "b", "c"), kind="triplet", margin=0.7)
    batch = tiny.batch(corpus)
    vectors = np.asarray(vectors_of(corpus.objective, model, params, batch))
    anchor, positive, negative = vectors.swapaxes(0, 1)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    unit = unit.swapaxes(0, 1)
    gaps = {
        "cosine": (unit[0] * unit[1]).sum(1) - (unit[0] * unit[2]).sum(1),
        "dot": (anchor * positive).sum(1) - (anchor * negative).sum(1),
        "euclidean": np.linalg.norm(anchor - negative, axis=1)
        - np.linalg.norm(anchor - positive, axis=1),
    }
    assert not corpus.objective.interacts
    for similarity, gap in gaps.items():
        objective = dataclasses.replace(corpus.objective, similarity=similarity)
        loss = loss_of(objective, model, params, batch)
        wanted = np.maximum(0.7 - gap, 0).mean()
        assert float(loss) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        found = step.make(model, objective).metrics(params, batch)
        total, count = found["contrastive_accuracy"]
        assert float(total) == (gap > 0).sum() and float(count) == 4


def test_a_learned_scale_starts_where_it_is_told_and_has_a_gradient(opened):
    corpus, model, params = opened(learn_scale=True, scale=5.0)
    batch = tiny.batch(corpus)
    log = params["heads"]["scale"]["log_scale"]
    assert float(log) == pytest.approx(np.log(5))
    fixed = dataclasses.replace(corpus.objective, learn_scale=False)
    loss = functools.partial(loss_of, corpus.objective, model)
    assert loss(params, batch) == pytest.approx(loss_of(fixed, model, params, batch))
    gradient = jax.grad(loss)(params, batch)
    assert abs(float(gradient["heads"]["scale"]["log_scale"])) > 1e-3


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"grad_accum": 2}, "grad_accum"),
        ({"objective__texts": ("a",)}, "objective.texts"),
        ({"objective__kind": "cosent"}, "objective.label"),
        ({"objective__label": "score", "objective__between": (5, 0)}, "between"),
        ({"objective__dims": (16,)}, "objective.dims"),
        ({"objective__learn_scale": True, "objective__scale": 200.0}, "scale"),
        ({"data__pack": True}, "data.pack"),
        ({"objective__kind": "triplet"}, "objective.texts"),
        ({"objective__similarity": "euclidean"}, "objective.similarity"),
        ({"objective__grad_cache": 3}, "objective.grad_cache"),
        (
            {
                "objective__kind": "triplet",
                "objective__texts": ("a", "b", "c"),
                "objective__grad_cache": 4,
            },
            "objective.grad_cache",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, where):
    tree = {"objective": {"name": "contrastive", "texts": ("a", "b")}, "evals": {}}
    data = {"sources": [{"name": "memory", "items": ITEMS}], "pack": False}
    config = tiny.config(**tree, **{"data": data, **changes})
    with pytest.raises(ConfigError) as caught:
        runs.check(config)
    assert where in caught.value.where and "\n" not in caught.value.line()


@pytest.mark.parametrize(
    ("field", "value", "objective"),
    [
        ("score", "high", {"label": "score"}),
        ("score", 6, {"label": "score", "between": (0, 5)}),
        ("b", 7, {}),
        ("b", " ", {"too_long": "error"}),
        ("b", " ".join(TEXTS), {"too_long": "error"}),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, field, value, objective):
    items = (*ITEMS[:3], ITEMS[3] | {field: value})
    with pytest.raises(DataError) as caught:
        corpus, _ = tiny.program(settings(items=items, **objective), tmp_path)
        len(corpus.stream)
    assert "\n" not in caught.value.line()
