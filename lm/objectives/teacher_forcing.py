"""The base of objectives that predict each token from the true tokens before it."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from lm.data import scoring
from lm.data.scoring import Scored, Settings, Text
from lm.errors import DataError, Rule
from lm.models.base import Predicts, Scores, Sequence
from lm.objectives import base
from lm.objectives.base import Batch, Lesson, Rows, Terms
from lm.ops import losses, sampled
from lm.ops.distillation import Soft
from lm.tokenizers.base import Codec

BOUNDS = {
    "label_smoothing": "[0, 1)",
    "z_loss": "[0, inf)",
    "sampled": "[0, 16777216]",
}


@dataclasses.dataclass(frozen=True)
class TeacherForcing(base.Objective):
    """The cross-entropy of `targets`, weighted by `weights`.

    Attributes:
      label_smoothing: share of each target's probability that is spread over the whole
        vocabulary (Vaswani et al. 2017, section 5.4). Metrics do not include it.
      z_loss: factor of log(Z)^2, where Z normalises the softmax; it keeps the logits
        from drifting. Metrics do not include it.
      sampled: words by which the loss of training estimates the sum over a large
        vocabulary (`lm.ops.sampled`); 0 takes all words. They are drawn anew for each
        update, frequent words more often, for which the ids must be sorted by falling
        frequency, as those of tokenizer.name="word" are. Metrics take all words.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sampled: int = 0

    can: ClassVar[frozenset[str]] = frozenset(
        {"tokens", "show", "prompt", "score", "lesson"}
    )
    token_term: ClassVar[str] = "lm"

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        yield Rule(
            not (self.sampled and self.label_smoothing),
            "objective.label_smoothing",
            f"{self.label_smoothing} with sampled={self.sampled}",
            "0, since a share of every word needs all words",
            "set objective.sampled=0, or objective.label_smoothing=0.",
        )

    def small(self) -> dict[str, Any]:
        return {"sampled": 0}

    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        return self.lesson(model, batch, train=train).terms

    def lesson(self, model: Sequence, batch: Batch, *, train: bool) -> Lesson:
        hidden = model(batch, train=train)
        terms = {"lm": self.cross_entropy(model, hidden, batch, train=train)}
        table, logits = model.token_head()

        def project(states: Array) -> Array:
            return logits(states, table)

        soft = Soft(hidden, batch["weights"], logits=project)
        return Lesson(terms, hidden, {"lm": soft})

    def agreement(self, codec: Codec) -> dict[str, Any]:
        return {}

    def cross_entropy(
        self,
        model: Sequence,
        hidden: Float[Array, "B T D"],
        batch: Batch,
        *,
        train: bool,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns (summed loss of the targets, their weight) for hidden states."""
        table, logits = model.token_head()
        rows, length, _ = hidden.shape
        if train and 0 < self.sampled < len(table):
            key = cast(Any, model).make_rng("sample")
            drawn = sampled.draw(key, len(table), self.sampled)
            given = hidden, batch["targets"], batch["weights"], drawn
            return sampled.sampled_cross_entropy(
                logits, table, *given, z_loss=self.z_loss
            )
        return losses.chunked_cross_entropy(
            logits,
            table,
            hidden,
            batch["targets"],
            batch["weights"],
            chunk=losses.chunk_of(rows, length, len(table)),
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"lm": batch["weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("lm_loss", "lm_accuracy")

    def metrics(self, model: Predicts, batch: Batch) -> Terms:
        return self._measured(*judge(model, batch), batch)

    def _measured(
        self, nats: Float[Array, "B T"], right: Bool[Array, "B T"], batch: Batch
    ) -> Terms:
        """Returns the metrics of what `judge` gives."""
        found = {
            "lm_loss": losses.weighted(nats, batch["weights"]),
            "lm_accuracy": losses.weighted(right, batch["weights"]),
        }
        if "known_weights" in batch:
            found["known_nats"] = losses.weighted(nats, batch["known_weights"])
        return found

    def predict(self, model: Predicts, batch: Batch) -> dict[str, Any]:
        """Returns `tokens` (B, T): the most probable next token at each position."""
        hidden = model(batch, train=False)
        if "score" in model.can:
            return {"tokens": cast(Scores, model).best(hidden)}
        logits = model.logits(hidden)
        return {"tokens": lax.argmax(logits, logits.ndim - 1, jnp.int32)}

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        return (("source", "target"),)

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes the row of a source, as a prompt, and of its target with the end."""
        start, end = start_and_end(codec, type(self).__module__.rpartition(".")[2])
        ids = scoring.with_end(codec.encode(text.text), end)
        return scoring.target_given_source(self.prompt(codec, text.context), start, ids)

    def score(
        self, model: Predicts, batch: Batch
    ) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
        nats, right = judge(model, batch)
        return -nats, right

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Encodes a text as an encoder reads it: with the end token."""
        _, end = start_and_end(codec, type(self).__module__.rpartition(".")[2])
        return [*codec.encode(text), end]

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the first segment: source or prefix, target, and predictions.

        A prediction depends on the true tokens before it: the line `guesses` is no
        generated text.
        """
        first = batch["segment_ids"][row] == 1
        predicted = first & (batch["weights"][row] > 0)
        parts = {
            "target": batch["targets"][row][predicted],
            "guesses": predictions["tokens"][row][predicted],
        }
        if "source_inputs" in batch:
            source = batch["source_segment_ids"][row] == 1
            parts = {"source": batch["source_inputs"][row][source]} | parts
        else:
            # The input at the position of the first target still belongs to the prefix.
            prefix = batch["inputs"][row][first & (np.cumsum(predicted) <= 1)]
            parts = {"prefix": prefix} | parts
        return "\n".join(
            f"{name}: {_decode_marked(ids.tolist(), codec)}"
            for name, ids in parts.items()
        )


def judge(
    model: Predicts, batch: Batch
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Returns the loss of each target in nats, and whether it was the best guess.

    The logits of all tokens are not computed where the model gives one at a time, and
    not all at once where they are many.
    """
    hidden, targets = model(batch, train=False), batch["targets"]
    if "score" in model.can:
        scores = cast(Scores, model)
        return -scores.log_prob(hidden, targets), scores.best(hidden) == targets
    if "hidden" in model.can:
        table, project = cast(Sequence, model).token_head()
        return losses.judged(project, table, hidden, targets)
    logits = model.logits(hidden)
    right = jnp.argmax(logits, axis=-1) == targets
    return losses.token_losses(logits, targets), right


def _decode_marked(ids: list[int], codec: Codec) -> str:
    """Decodes ids and keeps their sentinels, which `Codec.decode` drops."""
    # A model whose vocabulary was rounded up may predict an id that is no token.
    known = [i for i in ids if i < codec.vocab_size]
    text: list[str] = []
    for sentinel, group in itertools.groupby(known, codec.sentinel_ids.__contains__):
        run = list(group)
        text += map(codec.token, run) if sentinel else [codec.decode(run)]
    return " ".join(text)


def start_and_end(codec: Codec, objective: str) -> tuple[int, int]:
    """Returns the first input of a decoder (bos, or pad as in T5) and the end token.

    Args:
      objective: its name, for the error.

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


def end_of(codec: Codec) -> int:
    """Returns the id of the end token.

    Raises:
      DataError: the tokenizer has none.
    """
    if codec.eos_id is None:
        expected = "one, to score the end of a text"
        raise DataError("tokenizer", "no end token (eos)", expected, "leave out --end")
    return codec.eos_id
