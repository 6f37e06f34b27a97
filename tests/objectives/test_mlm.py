"""The masked-language objective: its examples, its loss against numpy, its texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import run as runs
from lm.errors import DataError
from lm.objectives import mlm
from lm.training import step
from tests import tiny


def opened(tmp_path, **changes):
    config = tiny.config(model__dropout=0.0, **changes)
    with tiny.some_devices(config):
        return (config, *tiny.program(config, tmp_path))


PAIRS = {"objective": {"name": "mlm", "next": "nsp"}, "data__pack": False}


def test_the_loss_is_the_cross_entropy_of_the_masked_places(tmp_path):
    _, corpus, program = opened(tmp_path, **PAIRS)
    batch = tiny.batch(corpus)
    params = program.init(jax.random.key(0))
    model, objective = program.model, corpus.objective

    def everything(module, batch):
        hidden = module(batch, train=False)
        return (
            module.logits(hidden),
            module.head("nsp", hidden, train=False),
            objective.loss(module, batch, train=False),
        )

    logits, pair, terms = jax.device_get(
        model.apply({"params": params}, batch, method=everything)
    )
    log_p, batch = np.asarray(jax.nn.log_softmax(logits)), jax.device_get(batch)
    expected = sum(
        -log_p[row, batch["target_positions"][row, k], batch["targets"][row, k]]
        for row in range(4)
        for k in np.flatnonzero(batch["weights"][row])
    )
    assert terms["mlm"][0] == pytest.approx(expected, rel=1e-5)
    assert terms["mlm"][1] == batch["weights"].sum()
    log_p = np.asarray(jax.nn.log_softmax(pair))
    expected = -log_p[np.arange(4), batch["labels"]].sum()
    assert terms["nsp"][0] == pytest.approx(expected, rel=1e-5)
    counts = objective.counts(tiny.batch(corpus))
    assert {name: float(count) for name, (_, count) in terms.items()} == {
        name: float(count) for name, count in counts.items()
    }


def test_what_stands_at_unmasked_places_of_targets_counts_for_nothing(tmp_path):
    _, corpus, program = opened(tmp_path)
    batch = tiny.batch(corpus)
    assert (batch["weights"] == 0).any()
    other = dict(batch)
    other["targets"] = jnp.where(batch["weights"] > 0, batch["targets"], 7)
    functions = step.make(program.model, corpus.objective)
    params = program.init(jax.random.key(0))
    a = jax.device_get(functions.metrics(params, batch))
    b = jax.device_get(functions.metrics(params, other))
    assert a == b


def test_a_pair_is_one_segment_of_two_types(tmp_path):
    _, corpus, _ = opened(tmp_path, **PAIRS)
    codec = corpus.codec
    for n in range(20):
        example = corpus.stream.example(n)
        used = example["segment_ids"] > 0
        types, inputs = example["token_types"][used], example["inputs"][used]
        assert set(example["segment_ids"]) <= {0, 1}
        assert inputs[0] == codec.cls_id
        assert inputs[-1] == codec.sep_id
        assert (np.diff(types) >= 0).all() and types[-1] == 1
        assert np.sum(inputs == codec.sep_id) == 2
        assert not np.isin(example["targets"][example["weights"] > 0], [0, 1]).any()


def test_a_guess_is_shown_beside_the_truth(tmp_path):
    _, corpus, _ = opened(tmp_path)
    codec = corpus.codec
    the, dog, cat = (codec.encode(word)[0] for word in ("the", "dog", "cat"))
    batch = {
        "inputs": np.array([[codec.cls_id, the, codec.mask_id, codec.mask_id, 0]]),
        "segment_ids": np.array([[1, 1, 1, 1, 0]]),
        "target_positions": np.array([[2, 3, 0]]),
        "targets": np.array([[dog, dog, 0]]),
        "weights": np.array([[1.0, 1.0, 0.0]]),
    }
    guesses = {"tokens": np.array([[dog, cat, the]])}
    assert mlm.Objective().show(batch, guesses, codec, 0) == "the [dog] [cat|dog]"


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    specials = ("pad", "unk", "cls", "sep")
    with pytest.raises(DataError, match="no mask token"):
        config = tiny.config(
            tokenizer={"name": "word", "kind": "word", "specials": specials}
        )
        runs.open_corpus(config, tmp_path, print).stream  # noqa: B018
