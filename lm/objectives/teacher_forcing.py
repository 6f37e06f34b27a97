"""Shared by objectives that predict each token of a text from the tokens before it."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lm.errors import DataError
from lm.models.base import Predicts, Sequence
from lm.objectives import base
from lm.objectives.base import Batch, Rows, Terms
from lm.ops import losses
from lm.tokenizers import Codec

BOUNDS = {"label_smoothing": "[0, 1)", "z_loss": "[0, inf)"}


@dataclasses.dataclass(frozen=True)
class TeacherForcing(base.Objective):
    """Cross-entropy of `targets` where `weights` are not 0.

    Attributes:
      label_smoothing: share of each target that is spread over the whole vocabulary
        (Vaswani et al. 2017, section 5.4); the metrics are without it.
      z_loss: factor of the squared logarithm of the softmax's sum, which keeps logits
        from drifting; the metrics are without it.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    can: ClassVar[frozenset[str]] = frozenset({"tokens", "show", "prompt", "score"})
    token_term: ClassVar[str] = "lm"

    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        hidden, (table, logits) = model(batch, train=train), model.token_head()
        rows, length, _ = hidden.shape
        total = losses.chunked_cross_entropy(
            logits,
            table,
            hidden,
            batch["targets"],
            batch["weights"],
            chunk=losses.chunk_of(rows, length, len(table)),
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        return {"lm": total}

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"lm": batch["weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("lm_loss", "lm_accuracy")

    def metrics(self, model: Predicts, batch: Batch) -> Terms:
        return self._measured(self._output(model, batch))

    def _output(self, model: Predicts, batch: Batch) -> tuple:
        logits = model.logits(model(batch, train=False))
        return logits, batch["targets"], batch["weights"]

    def _measured(self, output: tuple) -> Terms:
        return {
            "lm_loss": losses.cross_entropy(*output),
            "lm_accuracy": losses.correct(*output),
        }

    def predict(self, model: Predicts, batch: Batch) -> dict[str, Any]:
        """Returns `tokens` (B, T), the most probable next token at each position."""
        logits = model.logits(model(batch, train=False))
        return {"tokens": lax.argmax(logits, logits.ndim - 1, jnp.int32)}

    def score(self, model: Predicts, batch: Batch) -> Float[Array, "B T"]:
        logits = model.logits(model(batch, train=False))
        return -losses.token_losses(logits, batch["targets"])

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Returns a text as an encoder reads it, with the end token."""
        return [*codec.encode(text), codec.eos_id]

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the first segment: source or prefix, target, and what was predicted."""
        first = batch["segment_ids"][row] == 1
        said = first & (batch["weights"][row] > 0)
        parts = {
            "target": batch["targets"][row][said],
            "guesses": predictions["tokens"][row][said],
        }
        if "source_inputs" in batch:
            read = batch["source_segment_ids"][row] == 1
            parts = {"source": batch["source_inputs"][row][read]} | parts
        else:
            prefix = batch["inputs"][row][first & (np.cumsum(said) <= 1)]
            parts = {"prefix": prefix} | parts
        return "\n".join(
            f"{name}: {_shown(ids.tolist(), codec)}" for name, ids in parts.items()
        )


def _shown(ids: list[int], codec: Codec) -> str:
    """Decodes ids with their sentinels, which `decode` leaves out."""
    known = [i for i in ids if i < codec.vocab_size]  # a model's may be rounded up
    text: list[str] = []
    for sentinel, group in itertools.groupby(known, codec.sentinel_ids.__contains__):
        run = list(group)
        text += map(codec.token, run) if sentinel else [codec.decode(run)]
    return " ".join(text)


def start_and_end(codec: Codec, objective: str) -> tuple[int, int]:
    """Returns the decoder's first input (bos, else pad as in T5) and the end token.

    Raises:
      DataError: the tokenizer has no such token.
    """
    start = codec.pad_id if codec.bos_id is None else codec.bos_id
    if start is None or codec.eos_id is None:
        raise DataError(
            "tokenizer",
            "no end-of-text token" if start is not None else "no bos and no pad token",
            f"eos, and bos or pad, for objective {objective}",
            "use tokenizer.name=spm, or name the tokens in tokenizer.special",
        )
    return start, codec.eos_id
