"""The contract of an objective: both sides of a task, on the host and on the device."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float

from lm.data.index import Index, Layout
from lm.data.sources.base import Record
from lm.errors import Rule
from lm.models.base import Head, Sequence
from lm.tokenizers import Codec

Batch = dict[str, Array]
Rows = dict[str, np.ndarray]  # A batch on the host.
# The arrays of an encoder's side.
SOURCE = frozenset({"source_inputs", "source_positions", "source_segment_ids"})
Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]  # {term: (sum, count)}


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """The base of every objective; the fields of a subclass are `config.objective`.

    On the host, `layout` decides what a row is (made once, cached) and `transforms` how
    a row becomes an example. On the device, with `model` bound to its parameters,
    `loss` returns for each term the sum over its targets and their count; `counts`
    returns the same counts from the batch alone, so that an update can first total them
    over micro-batches and devices. The loss is the sum over terms of sum / count; a
    term without targets contributes 0.

    The arrays of a batch (B rows, T positions) have agreed names:

        inputs, positions, segment_ids (B, T)   a segment is a text of a row, counted
                                                from 1, 0 is padding; positions count
                                                within a text
        token_types (B, T)                      sentence A or B
        prefix (B, T) bool                      positions that all of their text sees
        targets, weights (B, T)                 or (B, K) beside target_positions (B, K)
        labels (B,), label_weights (B,)         of a row as a whole
        source_inputs, ... (B, S)               the same of an encoder's side
        example_ids (B, 3)                      stays on the host

    An evaluation set is filled up to whole batches by padding rows: copies of the first
    example in which every array whose name ends in `weights` is zero. Whatever a loss,
    a count or a metric sums must be multiplied by such an array. No token id means
    padding by itself; a segment of 0 does.

    Attributes:
      can: what the objective offers beside training, each word with the methods and
        facts that it promises:

        "tokens"      `token_term` names a term whose targets are token ids, in the
                      arrays `targets` and `weights`
        "bytes"       rows have the field `bytes`, the UTF-8 bytes of the tokens that
                      are targets of `token_term`, each token at most once
        "classes"     `predict` returns `probabilities` (B, C) of the array `labels`
        "show"        `show`, and `predict` returns what it needs
        "prompt"      `prompt` and `sees_prompt`
        "references"  `references` and `question`; a row holds one record (unpacked)
        "score"       `score`

      token_term: the term of "tokens".
    """

    can: ClassVar[frozenset[str]] = frozenset()
    token_term: ClassVar[str | None] = None

    # ── What it asks of the config and the model ────────────────────────────────────

    @property
    def needs(self) -> frozenset[str]:
        """The words of `model.can` (lm/models/base.py) that it cannot do without."""
        return frozenset({"hidden", "logits"})

    @property
    def gives(self) -> frozenset[str]:
        """The arrays of its batches that a model may read beside the usual ones.

        These are `token_types`, `prefix` and SOURCE; a model whose `reads` asks for
        another is refused.
        """
        return frozenset()

    @property
    def packs(self) -> bool:
        """Whether a row may hold several examples (`data.pack`)."""
        return True

    @property
    def interacts(self) -> bool:
        """Whether the loss of an example depends on others of its batch.

        In-batch negatives do; such an objective is refused with `grad_accum` above 1.
        """
        return False

    def heads(self) -> tuple[Head, ...]:
        """The heads that the model must have, under `heads/<name>`."""
        return ()

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        """Yields the conditions between its own fields and the rest of the config.

        They are checked before the workdir is touched, those of `needs`, `packs`,
        `interacts` and `lengths` beside them by the caller.
        """
        yield from ()

    def lengths(self, seq_len: int) -> dict[str, int]:
        """Returns the positions of a row on each side, by the config field of each."""
        return {"seq_len": seq_len}

    def small(self) -> dict[str, Any]:
        """Its fields that must change for rows of 128 tokens and fewer, and how.

        `lm.verify` shrinks a config by them.
        """
        return {}

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        """The columns of a record with text; a tokenizer is trained on them."""
        return ("text",)

    @abc.abstractmethod
    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        """Returns how records become rows; it is part of the index's fingerprint.

        Raises:
          ConfigError: the lengths leave no room for an example.
          DataError: the tokenizer lacks a token that the objective needs.
        """

    @abc.abstractmethod
    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable[..., dict[str, Any]], ...]:
        """Returns the functions (example, rng) -> example that a row goes through."""

    def tokens(self, batch: Rows) -> int:
        """Counts the tokens of a batch, for the throughput.

        These are the positions that are no padding or, where a batch has no
        `segment_ids`, the targets.
        """
        if "segment_ids" in batch:
            return int(np.count_nonzero(batch["segment_ids"]))
        names = [name for name in batch if name.endswith("weights")]
        return sum(int(np.count_nonzero(batch[name])) for name in names)

    # ── On the device ───────────────────────────────────────────────────────────────

    @abc.abstractmethod
    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        """Returns for each term (sum of the losses of its targets in nats, count)."""

    @abc.abstractmethod
    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Returns the counts of `loss` from the batch alone."""

    def metrics(self, model: Sequence, batch: Batch) -> Terms:
        """Returns what the evaluator `mean` averages, as {metric: (sum, count)}.

        By default these are the losses without dropout, named `<term>_loss`.
        """
        terms = self.loss(model, batch, train=False)
        return {f"{term}_loss": pair for term, pair in terms.items()}

    def measures(self) -> tuple[str, ...] | None:
        """Names what `metrics` returns; None where that is not known in advance."""
        return None

    def predict(self, model: Sequence, batch: Batch) -> dict[str, Array]:
        """Returns predictions of a batch, rows first, for evaluators that look at each.

        Which arrays: see the words of `can` that promise it.
        """
        raise NotImplementedError(f"{type(self).__module__} predicts nothing")

    # ── What some can, beside training ──────────────────────────────────────────────

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Returns a row of a batch as text, with its predictions ("show")."""
        raise NotImplementedError(f"{type(self).__module__} cannot show")

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Returns the token ids by which the model is asked to go on ("prompt")."""
        raise NotImplementedError(f"{type(self).__module__} cannot prompt")

    @property
    def sees_prompt(self) -> bool:
        """Whether all tokens of a prompt see each other, as in a prefix LM."""
        return False

    def references(self, record: Record) -> tuple[str, ...]:
        """Returns all right answers to a record, as they were given ("references")."""
        raise NotImplementedError(f"{type(self).__module__} has no references")

    def question(self, example: Rows) -> list[int]:
        """Returns the token ids of an example that ask for an answer ("references")."""
        raise NotImplementedError(f"{type(self).__module__} has no references")

    def score(self, model: Sequence, batch: Batch) -> Float[Array, "*targets"]:
        """Returns log p of each target in nats, in the shape of `weights` ("score").

        What stands where a weight is 0 has no meaning.
        """
        raise NotImplementedError(f"{type(self).__module__} cannot score")
