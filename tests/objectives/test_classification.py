"""Classification: single texts and pairs, their labels and their predictions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from lm import run as runs
from lm.errors import ConfigError, DataError
from lm.models.transformer import Model
from lm.objectives import classification
from lm.training import step
from tests import tiny

TEXTS = tuple(
    {"text": d["text"], "pair": "the end", "label": i % 3}
    for i, d in enumerate(tiny.documents(12))
)


def opened(tmp_path, items=TEXTS, **objective):
    source = {"sources": [{"name": "memory", "items": items}], "pack": False}
    config = tiny.config(
        objective={"name": "classification", "classes": 3, **objective},
        data=source,
        evals={},
    )
    with tiny.some_devices(config):
        return tiny.program(config, tmp_path)


@pytest.mark.parametrize("pair", [None, "pair"])
def test_examples(tmp_path, pair):
    corpus, _ = opened(tmp_path, pair=pair)
    codec = corpus.codec
    for n in range(12):
        example = corpus.stream.example(n)
        _, _, row = corpus.stream.locate(n)
        used = example["segment_ids"] > 0
        assert example["labels"] == TEXTS[row]["label"]
        assert example["label_weights"] == 1
        assert example["inputs"][0] == codec.cls_id
        assert np.sum(example["inputs"] == codec.sep_id) == (2 if pair else 1)
        ending = codec.encode("the end")
        if pair:
            assert example["inputs"][used][-3:-1].tolist() == ending
            assert example["token_types"][used][-3:].tolist() == [1, 1, 1]
        else:
            assert example["token_types"].max() == 0


def test_predictions_are_distributions_that_the_loss_uses(tmp_path):
    corpus, program = opened(tmp_path)
    batch = tiny.batch(corpus)
    functions = step.make(program.model, corpus.objective)
    params = program.init(jax.random.key(0))
    _, found = jax.device_get(functions.predict(params, batch))
    found = found["probabilities"]
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    total, count = jax.device_get(functions.metrics(params, batch)["classify_loss"])
    expected = -np.log(found[np.arange(4), batch["labels"]]).sum()
    assert total == pytest.approx(expected, rel=1e-5)
    assert count == 4


WITHOUT_BOS = {"name": "word", "kind": "word", "specials": ("pad", "unk", "eos")}


@pytest.mark.parametrize("pair", [None, "pair"])
@pytest.mark.parametrize("bos", ["its own", "none", "not wanted"])
def test_a_row_that_is_no_encoders_has_no_delimiters(tmp_path, pair, bos):
    """Texts one after the other, from the tokenizer's bos on, if it has one."""
    tokenizer = {"tokenizer": WITHOUT_BOS} if bos == "none" else {}
    objective = {"name": "classification", "classes": 3, "pair": pair}
    summary = {"its own": "last", "none": "max", "not wanted": "mean"}[bos]
    objective |= {"summary": summary, "bos": bos != "not wanted"}
    source = {"sources": [{"name": "memory", "items": TEXTS}], "pack": False}
    settings = tiny.config(objective=objective, data=source, evals={}, **tokenizer)
    with tiny.some_devices(settings):
        corpus, _ = tiny.program(settings, tmp_path)
    codec, cut = corpus.codec, 0
    start = [codec.bos_id] if bos == "its own" else []
    for n in range(12):
        example = corpus.stream.example(n)
        _, _, row = corpus.stream.locate(n)
        text, ending = codec.encode(TEXTS[row]["text"]), codec.encode("the end")
        room = 24 - len(start) - len(ending) * bool(pair)
        first = [*start, *text[:room]]
        wanted = [*first, *ending] if pair else first
        cut += len(text) > room
        used = len(wanted)
        assert example["inputs"].tolist() == wanted + [codec.pad_id] * (24 - used)
        assert example["segment_ids"].tolist() == [1] * used + [0] * (24 - used)
        assert example["positions"][:used].tolist() == list(range(used))
        types = [0] * len(first) + [1] * (used - len(first))
        assert example["token_types"][:used].tolist() == types
    assert 0 < cut < 12


def test_a_row_without_a_token_cannot_be_read_at_its_end(tmp_path):
    items = ({"text": " ", "label": 0}, *TEXTS)
    objective = {"name": "classification", "classes": 3, "summary": "last"}
    source = {"sources": [{"name": "memory", "items": items}], "pack": False}
    changes = {"objective": objective, "evals": {}, "tokenizer": WITHOUT_BOS}
    with pytest.raises(DataError, match="no text in text, expected a token"):
        settings = tiny.config(data=source, **changes)
        tiny.program(settings, tmp_path / "error")[0].stream.example(0)
    settings = tiny.config(data=source | {"on_bad": "skip", "max_bad": 0.5}, **changes)
    stream = tiny.program(settings, tmp_path / "skip")[0].stream
    assert {stream.locate(n)[2] for n in range(12)} == {*range(12)}
    settings = tiny.config(data=source, **{**changes, "tokenizer": {"name": "word"}})
    example = tiny.program(settings, tmp_path / "bos")[0].stream
    assert min(example.example(n)["segment_ids"].sum() for n in range(13)) == 1


@pytest.mark.parametrize("pair", [None, "pair"])
def test_an_encoder_decoder_says_the_row_again(tmp_path, pair):
    """Each text ends with eos; the decoder reads the row a place later."""
    objective = {"name": "classification", "classes": 3, "pair": pair}
    objective["summary"] = "decoder"
    source = {"sources": [{"name": "memory", "items": TEXTS}], "pack": False}
    model = tiny.tree()["model"] | {"kind": "encoder_decoder", "token_types": 0}
    settings = tiny.config(objective=objective, data=source, evals={}, model=model)
    with tiny.some_devices(settings):
        corpus, _ = tiny.program(settings, tmp_path)
    codec, cut = corpus.codec, 0
    for n in range(12):
        example = corpus.stream.example(n)
        _, _, row = corpus.stream.locate(n)
        text, ending = codec.encode(TEXTS[row]["text"]), codec.encode("the end")
        room = 24 - 1 - (len(ending) + 1) * bool(pair)
        wanted = [*text[:room], codec.eos_id]
        wanted += [*ending, codec.eos_id] if pair else []
        cut += len(text) > room
        rest = [0] * (24 - len(wanted))
        said = [codec.bos_id, *wanted[:-1], *rest]
        assert example["source_inputs"].tolist() == [*wanted, *rest]
        assert example["inputs"].tolist() == said
        for side in ("", "source_"):
            ones, places = [1] * len(wanted), range(len(wanted))
            assert example[f"{side}segment_ids"].tolist() == [*ones, *rest]
            assert example[f"{side}positions"].tolist() == [*places, *rest]
    assert 0 < cut < 12 and codec.pad_id == 0


def test_only_the_last_needs_no_special_tokens(tmp_path):
    changes = {"data": {"sources": [{"name": "memory", "items": TEXTS}]}, "evals": {}}
    changes |= {"tokenizer": WITHOUT_BOS}
    objective = {"name": "classification", "classes": 3, "summary": "relu"}
    with pytest.raises(DataError, match=r"no \[CLS\] or \[SEP\].*summary=last"):
        settings = tiny.config(objective=objective, **changes)
        tiny.program(settings, tmp_path)[0].stream.example(0)
    changes |= {"tokenizer": WITHOUT_BOS | {"specials": ("pad", "unk")}}
    model = tiny.tree()["model"] | {"kind": "encoder_decoder", "token_types": 0}
    with pytest.raises(DataError, match=r"no end-of-text token.*classification"):
        objective["summary"] = "decoder"
        settings = tiny.config(objective=objective, model=model, **changes)
        tiny.program(settings, tmp_path / "other")[0].stream.example(0)


@pytest.mark.parametrize("summary", ["tanh", "last", "decoder"])
@pytest.mark.parametrize("pair", [None, "pair"])
def test_a_row_is_shown_with_the_names_of_its_classes(tmp_path, summary, pair):
    kind = "encoder_decoder" if summary == "decoder" else "encoder"
    types = 0 if summary == "decoder" else 2
    model = tiny.tree()["model"] | {"kind": kind, "token_types": types}
    names = ("bad", "good", "fair")
    items = [
        {"text": "the dog runs", "pair": "the end", "label": names[n % 3]}
        for n in range(4)
    ]
    objective = {"name": "classification", "classes": 4, "labels": names}
    objective |= {"summary": summary, "pair": pair}
    source = {"sources": [{"name": "memory", "items": items}], "pack": False}
    config = tiny.config(objective=objective, data=source, evals={}, model=model)
    corpus = runs.open_corpus(config, tmp_path, print)
    batch = jax.tree.map(np.asarray, tiny.batch(corpus))
    probabilities = np.array([[0.1, 0.2, 0.0625, 0.6375]] * 4, np.float32)
    for row in range(4):
        shown = corpus.objective.show(
            batch, {"probabilities": probabilities}, corpus.codec, row
        )
        assert shown.splitlines() == [
            "text: the dog runs",
            *(["pair: the end"] if pair else []),
            f"label: {names[batch['labels'][row]]}",
            "predicted: 3",  # `labels` names three of the four classes.
            "probabilities: 3 0.637, good 0.200, bad 0.100, fair 0.062",
        ]
    many = np.arange(20, dtype=np.float32)[None] / 190
    task = dataclasses.replace(corpus.objective, classes=20)
    last = task.show(batch, {"probabilities": many}, corpus.codec, 0).splitlines()[-1]
    assert last.startswith("probabilities: 19 0.100, 18 0.095, ")
    assert last.endswith(", 10 0.053 and 10 more")


@pytest.mark.slow
def test_a_run_writes_samples_with_predictions(tmp_path):
    items = [{"text": "the old dog", "label": "good"}, {"text": "no", "label": "bad"}]
    source = {"sources": [{"name": "memory", "items": items}]}
    changes = {
        "objective": {"name": "classification", "labels": ("bad", "good")},
        "data": source | {"pack": False},
        "evals": {"x": {"evaluator": "samples", "data": source, "every": 2}},
        "steps": 2,
    }
    runs.check(tiny.config(**changes))
    assert tiny.run(changes, tmp_path) == 0
    (shown,) = (tmp_path / "samples").glob("x-2.txt")
    first, second = shown.read_text().strip().split("\n\n")
    assert first.startswith("text: the old dog\nlabel: good\npredicted: ")
    assert second.startswith("text: no\nlabel: bad\npredicted: ")
    assert "probabilities: " in second and "good 0." in second


SIZES = {"vocab_size": 16, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32}


def bound(summary, **fields):
    """A model with one head, and its parameters."""
    task = classification.Objective(classes=3, summary=summary)
    model = Model(**SIZES, heads=task.heads(), **fields)
    made = jax.jit(lambda key: model.init(key, method="touch")["params"])
    return model, meta.unbox(made(jax.random.key(0)))


def logits(model, params, inputs, segments, types=0):
    """Of the head; and the states that it reads."""
    places = np.arange(inputs.shape[1])[None].repeat(len(inputs), 0)
    batch = {"inputs": inputs, "segment_ids": segments, "positions": places}
    batch |= {f"source_{name}": leaf for name, leaf in batch.items()}
    batch["token_types"] = np.zeros_like(inputs) + types
    batch = {key: jnp.asarray(leaf, jnp.int32) for key, leaf in batch.items()}

    def head(model):
        hidden = model(batch, train=False)
        ids = batch["segment_ids"]
        return model.head("classify", hidden, ids, train=False), hidden

    both = jax.jit(lambda params: model.apply({"params": params}, method=head))
    return jax.tree.map(np.asarray, both(params))


def test_the_last_token_is_the_last_that_is_no_padding():
    model, params = bound("last", kind="decoder", output="untied", token_types=0)
    assert params["heads"]["classify"].keys() == {"kernel"}
    assert "output" not in params  # it says no words
    inputs = np.random.default_rng(0).integers(1, 16, (3, 6))
    right = np.arange(6) < np.array([[4], [6], [1]])
    kernel = params["heads"]["classify"]["kernel"]
    two, both = bound("decoder", kind="encoder_decoder", token_types=0)
    pooler, last_layer = both["pooler"], both["heads"]["classify"]
    for segments, last in ((right, [3, 5, 0]), (right[:, ::-1], [5, 5, 5])):
        found, hidden = logits(model, params, inputs, segments)
        wanted = hidden[np.arange(3), last] @ kernel
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        found, hidden = logits(two, both, inputs, segments)
        dense = hidden[np.arange(3), last] @ pooler["kernel"] + pooler["bias"]
        wanted = np.tanh(dense) @ last_layer["kernel"] + last_layer["bias"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_pooler_ends_in_tanh_or_relu():
    inputs = np.random.default_rng(1).integers(1, 16, (2, 5))
    segments = np.ones_like(inputs)
    tanh, params = bound("tanh", init_std=0.5)
    relu, other = bound("relu", init_std=0.5)
    assert jax.tree.structure(params) == jax.tree.structure(other)

    state = logits(tanh, params, inputs, segments)[1][:, 0]
    dense, last = params["pooler"], params["heads"]["classify"]
    pooled = state @ dense["kernel"] + dense["bias"]
    for model, function in ((tanh, np.tanh), (relu, lambda x: np.maximum(x, 0))):
        wanted = function(pooled) @ last["kernel"] + last["bias"]
        found, _ = logits(model, params, inputs, segments)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("types", "same"), [(1, True), (2, False)])
def test_the_second_text_has_a_type_only_where_the_model_has_two(types, same):
    inputs = np.random.default_rng(1).integers(1, 16, (2, 5))
    model, params = bound("tanh", init_std=0.5, token_types=types)
    second = np.arange(5) >= 3
    zeros, ones = (
        logits(model, params, inputs, np.ones_like(inputs), kinds)[0]
        for kinds in (0, second)
    )
    assert np.array_equal(zeros, ones) == same


@pytest.mark.parametrize("summary", ["tanh", "relu"])
def test_a_decoder_has_no_head_on_its_first_token(summary):
    with pytest.raises(ConfigError, match=r"first token.*objective\.summary=last"):
        bound(summary, kind="decoder")


@pytest.mark.slow
def test_a_decoder_learns_to_classify(tmp_path):
    """The label is the last word but one, which the first token does not see."""
    items = tuple(
        {"text": f"the old dog {('runs', 'sees', 'eats')[i % 3]} here", "label": i % 3}
        for i in range(24)
    )
    corpus, _ = opened(tmp_path, items, summary="last")
    decoder = {"norm_position": "pre", "embedding": "plain", "output": "untied"}
    objective = corpus.objective
    model = Model(
        **SIZES | {"vocab_size": corpus.codec.vocab_size},
        **decoder,
        kind="decoder",
        heads=objective.heads(),
    )
    optimiser, batch = optax.adam(3e-2), tiny.batch(corpus, 24)

    def loss(params):
        ask = functools.partial(objective.loss, batch=batch, train=False)
        total, count = model.apply({"params": params}, method=ask)["classify"]
        return total / count

    @jax.jit
    def update(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        changes, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, changes), state, value

    params = step.make(model, objective).init(jax.random.key(0))
    state, losses = optimiser.init(params), []
    for _ in range(20):
        params, state, value = update(params, state)
        losses.append(float(value))
    assert losses[0] > 0.9 and losses[-1] < 0.5 * losses[0], losses
