"""Instruction tuning: predicts the answers of an assistant in dialogues.

Wei et al. 2022 (FLAN) and Ouyang et al. 2022, section 3.5: the model reads all turns,
and the loss is that of the assistant's alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from lm.data import transforms
from lm.data.dialogues import Dialogues, NextInAnswer
from lm.data.index import Index, Layout
from lm.errors import Rule
from lm.models.base import Predicts
from lm.objectives.base import Batch, Terms
from lm.objectives.causal_lm import MarkEnds
from lm.objectives.conversing import Conversing
from lm.objectives.teacher_forcing import TeacherForcing, judge
from lm.ops import losses
from lm.tokenizers.base import Codec


@dataclasses.dataclass(frozen=True)
class Objective(Conversing, TeacherForcing):
    """Options of `chat`; a row has `seq_len` input tokens.

    A dialogue is a list of roles and one of texts, as the source `chat` gives them: of
    the system first, if it speaks, then of user and assistant in turn. Targets are the
    tokens of the assistant's turns, with the token that ends each of them and at which
    generation stops. Turns after the last answer are left out.

    Attributes:
      roles, contents: the columns of the source with the roles and the texts.
      learn: whether all answers of a dialogue are learned, or the last one alone.
      too_long: what to do with a dialogue that does not fit: refuse it, cut its end,
        divide it between turns ("window"; with learn="last", drop its oldest turns),
        or skip it.
    """

    roles: str = "roles"
    contents: str = "contents"
    learn: Literal["all", "last"] = "all"
    too_long: Literal["error", "cut", "window", "skip"] = "error"

    can: ClassVar[frozenset[str]] = TeacherForcing.can | {"bytes", "dialogue"}

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        yield from super().rules(config)
        yield Rule(
            not (self.learn == "last" and self.too_long == "cut"),
            "objective.too_long",
            "'cut' with learn='last'",
            "error, window or skip: the last answer is at the end, which is cut",
        )

    def small(self) -> dict[str, Any]:
        too_long = "skip" if self.too_long == "error" else self.too_long
        return super().small() | {"too_long": too_long}

    def columns(self) -> tuple[str, ...]:
        return (self.contents,)

    # ── Rows ────────────────────────────────────────────────────────────────────────

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        form = self.form(codec)
        form.check()
        return Dialogues(
            form=form,
            length=seq_len,
            pack=pack,
            last=self.learn == "last",
            too_long=self.too_long,
            roles=self.roles,
            contents=self.contents,
        )

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "targets", "weights")
        ends = MarkEnds(self.form(codec).ends[0])
        return (
            NextInAnswer(),
            transforms.PadSides(seq_len, seq_len, codec.pad_id or 0),
            ends,
            transforms.Keep((*names, ends.NAME)),
        )

    def agreement(self, codec: Codec) -> dict[str, Any]:
        return {"objective.template": repr(self.form(codec))}

    # ── On the device ───────────────────────────────────────────────────────────────

    def measures(self) -> tuple[str, ...]:
        return (*super().measures(), "end_nats")

    def metrics(self, model: Predicts, batch: Batch) -> Terms:
        """Adds `end_nats`, the loss of the end tokens."""
        nats, right = judge(model, batch)
        ends = losses.weighted(nats, batch[MarkEnds.NAME])
        return self._measured(nats, right, batch) | {"end_nats": ends}
