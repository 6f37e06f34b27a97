"""Loads the reference models of tests/goldens, and builds ours with their weights."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import resolve as configs
from lm.hf import checkpoint, importing
from lm.models.base import Head
from lm.models.blocks.heads import Linear
from lm.models.transformer import Model
from lm.objectives import classification, mlm
from lm.trees import nest

PLACE = Path(__file__).resolve().parents[1] / "goldens"
NAMES = sorted(path.parent.name for path in PLACE.glob("*/outputs.npz"))
HEADS = {head.name: head for head in mlm.Objective(next="nsp").heads()}
HEADS |= {
    "tag": Head("tag", functools.partial(Linear, outputs=3)),
    "span": Head("span", functools.partial(Linear, outputs=2)),
}


def model(opened: checkpoint.Checkpoint, **changes) -> Model:
    task = classification.Objective(classes=3, summary=opened.family.summary)
    known = HEADS | {"classify": task.heads()[0]}
    heads = tuple(known[part] for part in opened.parts if part in known)
    return configs.build(Model, opened.model | changes, heads=heads)


def params(opened: checkpoint.Checkpoint) -> dict:
    return nest(importing.load(opened, importing.shapes(opened)))


def outputs(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(PLACE / name / "outputs.npz"))


def batch(given: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Converts inputs of transformers to a batch."""

    def side(prefix: str, ids: str, mask: str) -> dict:
        places = np.broadcast_to(np.arange(given[ids].shape[1]), given[ids].shape)
        return {
            f"{prefix}inputs": given[ids],
            f"{prefix}positions": places,
            f"{prefix}segment_ids": given[mask],
        }

    if "decoder_input_ids" in given:
        found = side("source_", "input_ids", "attention_mask")
        found |= side("", "decoder_input_ids", "decoder_attention_mask")
    else:
        found = side("", "input_ids", "attention_mask")
        types = given.get("token_type_ids", np.zeros_like(given["input_ids"]))
        found["token_types"] = types
    return {key: jnp.asarray(value, jnp.int32) for key, value in found.items()}


def close(ours, theirs, mask=None, tolerance=1e-5) -> None:
    """Asserts equality within `tolerance` of the largest value, except where masked."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    if mask is not None:
        ours, theirs = ours[mask != 0], theirs[mask != 0]
    gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert gap <= tolerance, f"{gap:.2e} of the largest"
