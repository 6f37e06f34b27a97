"""Compares greedy and beam answers to 50 prompts with those of `transformers`."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding import loop
from lm.hf import checkpoint
from tests.hf import goldens

CODEC = SimpleNamespace(vocab_size=61, pad_id=0, bos_id=None, eos_id=2)
GREEDY = loop.Settings(max_tokens=10)
# The library's search with early_stopping=False.
BEAM = loop.Settings(
    max_tokens=10, beams=4, length_penalty=1.0, penalty="length", early_stop="heuristic"
)
NAMES = sorted(path.parent.name for path in goldens.PLACE.glob("*/generated.npz"))
FEW = ("llama_3_1",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in NAMES],
)
def test_the_same_tokens(name):
    opened = checkpoint.open_checkpoint(goldens.PLACE / name)
    decoder = loop.make_decoder(goldens.model(opened), CODEC)
    decoder = loop.with_params(decoder, goldens.params(opened))
    wanted = np.load(goldens.PLACE / name / "generated.npz")
    prompts = [row[row >= 0].tolist() for row in wanted["prompts"]]
    assert jnp.asarray(wanted["greedy"]).shape == (50, 10)
    for kind, settings in (("greedy", GREEDY), ("beam", BEAM)):
        answers = loop.answer(decoder, prompts, settings)
        for (best, *_), row in zip(answers, wanted[kind], strict=True):
            assert best.ids == [id for id in row.tolist() if id not in (-1, 2)], kind
