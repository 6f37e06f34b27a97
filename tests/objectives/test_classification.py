"""Classification: single texts and pairs, their labels and their predictions."""

import jax
import numpy as np
import pytest

from lm import step
from tests import tiny

TEXTS = tuple(
    {"text": d["text"], "pair": "the end", "label": i % 3}
    for i, d in enumerate(tiny.documents(12))
)


def opened(tmp_path, **objective):
    source = {"sources": [{"name": "memory", "items": TEXTS}], "pack": False}
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
    found = jax.device_get(functions.predict(params, batch)["probabilities"])
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    total, count = jax.device_get(functions.metrics(params, batch)["classify_loss"])
    expected = -np.log(found[np.arange(4), batch["labels"]]).sum()
    assert total == pytest.approx(expected, rel=1e-5)
    assert count == 4
