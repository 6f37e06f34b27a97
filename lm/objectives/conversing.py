"""The base of objectives whose models answer in dialogues."""

import dataclasses
from typing import Any

from jaxtyping import Array, Bool, Float

from lm.data import scoring
from lm.data.buckets import RowLengths
from lm.data.index import Index
from lm.data.scoring import Scored, Settings, Text
from lm.hf.chat import read_template, render_all
from lm.models.base import Predicts
from lm.objectives import base
from lm.objectives.base import Batch
from lm.objectives.teacher_forcing import judge
from lm.tokenizers import dialogues
from lm.tokenizers.base import Codec
from lm.tokenizers.dialogues import Conversation, Form, Turn


@dataclasses.dataclass(frozen=True)
class Conversing(base.Objective):
    """What has "dialogue" in `can`, with "prompt" and "score".

    Attributes:
      template: whether turns are written by the chat template of the tokenizer, where
        it has one. Otherwise each is a line after the name of its speaker ("User: Hi"),
        an answer ends with the tokenizer's eos token, and a text begins with bos, if
        there is one. `lm.generate --chat` writes them as the training did.
    """

    template: bool = True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"causal"}

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def form(self, codec: Codec) -> Form:
        template = None
        if self.template and codec.directory is not None:
            template = read_template(codec.directory)
        return dialogues.open_form(codec, template, render_all, codec.directory)

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Encodes a user's turn, up to where the assistant answers."""
        return self.form(codec).prompt([Turn("user", text)])

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        return (("prompt", "answer"),)

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes the rows of an answer to a user's turn, with its end token."""
        turns = Turn("user", text.context), Turn("assistant", text.text)
        [found] = self.form(codec).dialogues([Conversation(turns, text.where)])
        start = found.answers[-1][0]
        before, ids = found.ids[:start], found.ids[start:]
        return scoring.left_to_right(before, ids, settings, limit)

    def score(
        self, model: Predicts, batch: Batch
    ) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
        nats, right = judge(model, batch)
        return -nats, right
