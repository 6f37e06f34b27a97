"""Masked language modelling, alone or with a task on sentence pairs.

Devlin et al. 2019 (BERT), section 3.1: masked tokens and next-sentence prediction;
Liu et al. 2019 (RoBERTa): masks drawn anew in every epoch, full documents; Lan et al.
2020 (ALBERT): sentence order instead of next sentence.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lm.data import masking, scoring, transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import Documents
from lm.data.scoring import Scored, Settings, Text
from lm.data.sentences import NextSentence, Sentences
from lm.errors import DataError, Rule
from lm.models.base import Head, Headed, Sequence
from lm.models.blocks.heads import Linear, MaskedToken
from lm.objectives import base
from lm.objectives.base import Batch, Lesson, Rows, Terms
from lm.ops import losses
from lm.ops.distillation import Soft
from lm.tokenizers.base import Codec

BOUNDS = {
    "rate": "(0, 1)",
    "mask": "[0, 1]",
    "random": "[0, 1]",
    "short": "[0, 1]",
}
WORDS = {"choose": "data.masking:*"}


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `mlm`.

    Attributes:
      rate: share of the tokens to predict.
      mask, random: shares of these that become [MASK] or a random token; the rest stay.
      choose: which tokens are predicted, a function of `lm/data/masking.py`.
      words: an older way to write choose="words".
      next: the task on sentence pairs: next sentence (`nsp`), sentence order (`sop`),
        or `none`.
      short: share of the pairs whose target length is drawn at random below `seq_len`.
      column: the column of the source that holds the text.
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    choose: str = "tokens"
    words: bool = False
    next: Literal["none", "nsp", "sop"] = "none"
    short: float = 0.1
    column: str = "text"

    can: ClassVar[frozenset[str]] = frozenset({"tokens", "show", "score", "lesson"})
    token_term: ClassVar[str] = "mlm"

    @property
    def needs(self) -> frozenset[str]:
        pairs = {"head"} if self.next != "none" else set()
        return frozenset({"hidden", "logits", "whole", *pairs})

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"token_types"})

    @property
    def packs(self) -> bool:
        return self.next == "none"

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        types = config["model"].get("token_types")
        expected = f"2, for the two sentences of objective.next={self.next}, or 0"
        holds = self.next == "none" or types != 1
        yield Rule(holds, "model.token_types", types, expected)
        holds = not self.words or self.choose in ("tokens", "words")
        found, expected = f"true with choose={self.choose}", "false: choose says it"
        yield Rule(holds, "objective.words", found, expected)

    def heads(self) -> tuple[Head, ...]:
        masked = Head("mlm", MaskedToken, logits=True)
        if self.next == "none":
            return (masked,)
        two = functools.partial(Linear, outputs=2)
        return masked, Head(self.next, two, row="first", pooler="tanh")

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        _mask_id(codec)
        if self.next == "none":
            overhead = sum(i is not None for i in (codec.cls_id, codec.sep_id))
            return Documents(seq_len, overhead, pack, self.column)
        base.delimiters(codec, f"objective.next={self.next}")
        return Sentences(seq_len, self.short, self.column)

    def row_lengths(self, layout: Any, index: Index) -> RowLengths | None:
        # The second sentence of "nsp" is drawn, and may be longer than the row's own.
        return layout.row_lengths(index) if self.next != "nsp" else None

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        special = np.isin(np.arange(codec.vocab_size), list(codec.special_ids))
        mask = transforms.MaskTokens(
            rate=self.rate,
            mask=self.mask,
            random=self.random,
            choose=getattr(masking, "words" if self.words else self.choose),
            length=seq_len,
            mask_id=_mask_id(codec),
            ordinary=np.flatnonzero(~special).astype(np.int32),
            is_special=special,
            starts_word=codec.starts_word,
        )
        names: tuple[str, ...] = ("inputs", "positions", "segment_ids", "token_types")
        names += ("target_positions", "targets", "weights")
        if self.next == "none":
            wrap = transforms.Wrap(
                prefix=() if codec.cls_id is None else (codec.cls_id,),
                suffix=() if codec.sep_id is None else (codec.sep_id,),
            )
            steps: tuple[Callable, ...] = (wrap,)
        else:
            if self.next == "nsp" and index.fields["document"][-1] == 0:
                raise DataError(
                    "data.sources",
                    "a single document",
                    "two or more, for the random sentence of next='nsp'",
                    "split the text into documents, or set objective.next=sop or none",
                )
            delimiters = base.delimiters(codec, f"objective.next={self.next}")
            names += ("labels", "label_weights")
            steps = (
                NextSentence(index, seq_len - Sentences.OVERHEAD, self.next),
                transforms.WrapPair(seq_len, *delimiters),
            )
        pad = transforms.Pad(seq_len, codec.pad_id or 0)
        return (*steps, mask, pad, transforms.Keep(names))

    def _outputs(self, model: Sequence, batch: Batch, train: bool) -> dict[str, tuple]:
        """Returns (logits, targets, weights) per term, at masked positions only."""
        return self._outputs_of(model, batch, model(batch, train=train), train)

    def _outputs_of(
        self,
        model: Sequence,
        batch: Batch,
        hidden: Float[Array, "B T D"],
        train: bool,
    ) -> dict[str, tuple]:
        outputs = {"mlm": (*self._masked(model, batch, hidden), batch["weights"])}
        if self.next != "none":
            headed = cast(Headed, model)  # `needs` requires "head".
            logits = headed.head(self.next, hidden, train=train)
            outputs[self.next] = (logits, batch["labels"], batch["label_weights"])
        return outputs

    def _masked(
        self, model: Sequence, batch: Batch, hidden: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B K V"], Int[Array, "B K"]]:
        """Returns the logits at the masked positions, and their targets."""
        positions = batch["target_positions"][..., None]
        logits = model.logits(jnp.take_along_axis(hidden, positions, axis=1))
        return logits, batch["targets"]

    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        return self.lesson(model, batch, train=train).terms

    def lesson(self, model: Sequence, batch: Batch, *, train: bool) -> Lesson:
        hidden = model(batch, train=train)
        outputs = self._outputs_of(model, batch, hidden, train)
        terms = {term: losses.cross_entropy(*out) for term, out in outputs.items()}
        soft = {term: Soft(out[0], out[2]) for term, out in outputs.items()}
        return Lesson(terms, hidden, soft)

    def teaching(self, student: Any) -> "Objective":
        # A teacher of masked tokens may have learned a task on pairs, too.
        alone = student.next == "none"
        return dataclasses.replace(self, next="none") if alone else self

    def agreement(self, codec: Codec) -> dict[str, Any]:
        return {"objective.next": self.next}

    def counts(self, batch: Batch) -> dict[str, Any]:
        counts = {"mlm": batch["weights"].sum()}
        if self.next != "none":
            counts[self.next] = batch["label_weights"].sum()
        return counts

    def measures(self) -> tuple[str, ...]:
        terms = ("mlm",) if self.next == "none" else ("mlm", self.next)
        return tuple(f"{t}_{what}" for what in ("loss", "accuracy") for t in terms)

    def metrics(self, model: Sequence, batch: Batch) -> Terms:
        outputs = self._outputs(model, batch, False)
        terms = {f"{t}_loss": losses.cross_entropy(*o) for t, o in outputs.items()}
        terms |= {f"{t}_accuracy": losses.correct(*o) for t, o in outputs.items()}
        if "known_weights" in batch:
            known = *outputs["mlm"][:2], batch["known_weights"]
            terms["known_nats"] = losses.cross_entropy(*known)
        return terms

    def predict(self, model: Sequence, batch: Batch) -> dict[str, Any]:
        """Returns `tokens` (B, K): the most probable token at each masked position."""
        logits = self._outputs(model, batch, False)["mlm"][0]
        return {"tokens": lax.argmax(logits, logits.ndim - 1, jnp.int32)}

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        return (("text",), ("context", "continuation"))

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes a row for each token of a text, in which it is masked.

        The sum of the scores is the pseudo-log-likelihood (Salazar et al. 2020, section
        2.2): each token given all others. Special tokens are not scored.
        """
        return scoring.masked_one_by_one(
            *scoring.split(codec, text),
            settings,
            limit,
            around=(
                () if codec.cls_id is None else (codec.cls_id,),
                () if codec.sep_id is None else (codec.sep_id,),
            ),
            mask=_mask_id(codec),
            starts_word=lambda id: bool(codec.starts_word[id]),
        )

    def measure(self, settings: Settings) -> str:
        whole = "" if settings.hide == "token" else "_within_word_l2r"
        return f"pseudo_log_likelihood{whole}"

    def score(
        self, model: Sequence, batch: Batch
    ) -> tuple[Float[Array, "B K"], Bool[Array, "B K"]]:
        logits, targets = self._masked(model, batch, model(batch, train=False))
        right = jnp.argmax(logits, axis=-1) == targets
        return -losses.token_losses(logits, targets), right

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the first text of a row, with masked positions in brackets.

        A right prediction is `[token]`, a wrong one `[predicted|target]`.
        """
        tokens = batch["inputs"][row]
        masked = {}
        for k in np.flatnonzero(batch["weights"][row]):
            target, predicted = (
                codec.decode([int(ids[row, k])]).strip()
                for ids in (batch["targets"], predictions["tokens"])
            )
            right = predicted == target
            masked[int(batch["target_positions"][row, k])] = (
                f"[{predicted}]" if right else f"[{predicted}|{target}]"
            )
        first = batch["segment_ids"][row] == 1
        text: list[str] = []
        run: list[int] = []
        for position, token in enumerate(tokens[first]):
            if position in masked:
                text += [codec.decode(run), masked[position]]
                run = []
            elif int(token) not in codec.special_ids:
                run.append(int(token))
        return " ".join(part for part in [*text, codec.decode(run)] if part)


def _mask_id(codec: Codec) -> int:
    """Returns the id of [MASK].

    Raises:
      DataError: the tokenizer has none.
    """
    if codec.mask_id is None:
        raise DataError(
            "tokenizer",
            "no mask token",
            "one, for objective mlm",
            "use tokenizer.name=hf with kind=wordpiece, or add a mask token",
        )
    return codec.mask_id
