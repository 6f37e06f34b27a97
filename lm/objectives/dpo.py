"""Direct preference optimisation: the better of two answers becomes more probable.

Rafailov et al. 2023: the reward of an answer is beta times the logarithm of its
probability over that which the reference gives it, which is the model at the beginning;
the loss is that of the Bradley-Terry model, in which the better answer has more reward.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.data import transforms
from lm.data.dialogues import NextInAnswer
from lm.data.index import Index, Layout
from lm.data.preferences import Preferences, WeighPair
from lm.errors import Rule
from lm.models.base import Sequence
from lm.objectives.base import Batch, Terms
from lm.objectives.conversing import Conversing
from lm.ops import losses
from lm.tokenizers.base import Codec

BOUNDS = {"beta": "(0, 100]", "label_smoothing": "[0, 0.5)", "sft": "[0, 1000]"}


@dataclasses.dataclass(frozen=True)
class Objective(Conversing):
    """Options of `dpo`; a row has the prompt twice, once with each answer.

    Together they have at most `seq_len` input tokens. The reference is `init.source`,
    or without one what the seed gives: a frozen copy of the weights
    (adapter.name="reference"), or the base of `lora`.

    Attributes:
      prompt_column: the column of the source with the user's turn; None: the dialogue
        up to a user's turn is in the columns `roles` and `contents`, as the source
        `chat` gives them.
      chosen, rejected: the columns with the better answer and the other one.
      roles, contents: see `prompt_column`.
      beta: the factor of the rewards; a small one lets the model go far away from the
        reference.
      label_smoothing: the share of records whose answers are taken to be the wrong way
        round (Mitchell 2023, conservative DPO).
      sft: factor of the cross-entropy of the chosen answers, which is added to the loss
        (Pang et al. 2024, section 2).
      too_long: what to do with a record that does not fit: refuse it, or skip it.
    """

    prompt_column: str | None = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    roles: str = "roles"
    contents: str = "contents"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft: float = 0.0
    too_long: Literal["error", "skip"] = "error"

    can: ClassVar[frozenset[str]] = frozenset(
        {"prompt", "score", "dialogue", "reference"}
    )

    @property
    def packs(self) -> bool:
        return False

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        yield from super().rules(config)
        missing = tuple(config["init"].get("missing", ()))
        expected = "(): the reference has all weights, and none that are new"
        yield Rule(not missing, "init.missing", repr(missing), expected)

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        asked = self.prompt_column or self.contents
        return (asked, self.chosen, self.rejected)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        form = self.form(codec)
        form.check()
        return Preferences(
            form=form,
            length=seq_len,
            too_long=self.too_long,
            prompt=self.prompt_column,
            answers=(self.chosen, self.rejected),
            roles=self.roles,
            contents=self.contents,
        )

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "targets", "answers")
        return (
            NextInAnswer(),
            transforms.PadSides(seq_len, seq_len, codec.pad_id or 0),
            WeighPair(),
            transforms.Keep((*names, WeighPair.NAME)),
        )

    # ── On the device ───────────────────────────────────────────────────────────────

    def refer(self, model: Sequence, batch: Batch) -> dict[str, Array]:
        """Returns `reference` (B, 2), log p of both answers under the reference."""
        return {"reference": self._log_probs(model, batch, train=False)}

    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        log_probs = self._log_probs(model, batch, train=train)
        terms = {"dpo": self._preferred(self._rewards(log_probs, batch), batch)}
        if self.sft:
            terms["sft"] = self._supervised(log_probs, batch)
        return terms

    def counts(self, batch: Batch) -> dict[str, Any]:
        counts = {"dpo": batch[WeighPair.NAME].sum()}
        return counts | ({"sft": self._chosen(batch).sum()} if self.sft else {})

    def measures(self) -> tuple[str, ...]:
        loss = ("dpo_loss", *(("sft_loss",) if self.sft else ()))
        rewards = ("reward_margin", "reward_chosen", "reward_rejected")
        return (*loss, "accuracy", *rewards)

    def metrics(self, model: Sequence, batch: Batch) -> Terms:
        """Returns the losses and what the rewards are, in nats.

        `accuracy` is the share of records whose better answer has the greater reward,
        and `reward_margin` the mean of how much greater it is. Equal rewards, as before
        the first update, are half right.
        """
        log_probs = self._log_probs(model, batch, train=False)
        rewards = self._rewards(log_probs, batch)
        margins = rewards[:, 0] - rewards[:, 1]
        found = {"dpo_loss": self._preferred(rewards, batch)}
        if self.sft:
            found["sft_loss"] = self._supervised(log_probs, batch)
        values = {
            "accuracy": (jnp.sign(margins) + 1) / 2,
            "reward_margin": margins,
            "reward_chosen": rewards[:, 0],
            "reward_rejected": rewards[:, 1],
        }
        weights = batch[WeighPair.NAME]
        return found | {k: losses.weighted(v, weights) for k, v in values.items()}

    def _log_probs(
        self, model: Sequence, batch: Batch, *, train: bool
    ) -> Float[Array, "B 2"]:
        """Computes log p of each answer, the sum over its tokens and its end token."""
        hidden = model(batch, train=train)
        table, project = model.token_head()
        nats, _ = losses.judged(project, table, hidden, batch["targets"])
        segments = batch["segment_ids"][:, None] == jnp.arange(1, 3)[:, None]
        given = nats, batch["answers"], segments.astype(jnp.float32)
        return -jnp.einsum("bt,bt,bkt->bk", *given, precision="highest")

    def _rewards(
        self, log_probs: Float[Array, "B 2"], batch: Batch
    ) -> Float[Array, "B 2"]:
        return self.beta * (log_probs - batch["reference"])

    def _preferred(
        self, rewards: Float[Array, "B 2"], batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the loss of the records, and their weight."""
        margins, share = rewards[:, 0] - rewards[:, 1], self.label_smoothing
        each = (1 - share) * jax.nn.softplus(-margins)
        each += share * jax.nn.softplus(margins)
        return losses.weighted(each, batch[WeighPair.NAME])

    def _supervised(
        self, log_probs: Float[Array, "B 2"], batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the scaled loss of the chosen answers, and their tokens."""
        nats = -self.sft * log_probs[:, 0] * batch[WeighPair.NAME]
        return nats.sum(), self._chosen(batch).sum()

    def _chosen(self, batch: Batch) -> Float[Array, "B T"]:
        """Returns the weights of the tokens of chosen answers."""
        chosen = batch["answers"] * (batch["segment_ids"] == 1)
        return batch[WeighPair.NAME][:, None] * chosen
