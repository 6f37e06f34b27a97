"""Causal language modelling: each token given those before it (GPT, Llama).

Bengio et al. 2003; Radford et al. 2019.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from lm.data import transforms
from lm.data.index import Index, Layout
from lm.data.windows import NextToken, Windows
from lm.errors import ConfigError
from lm.objectives.teacher_forcing import TeacherForcing

BOUNDS = {"stride": "[1, 16777216]"}


@dataclasses.dataclass(frozen=True)
class Objective(TeacherForcing):
    """config.objective of `causal_lm`; a row feeds `seq_len` tokens.

    Attributes:
      column: the column of the source that holds the text.
      bos, eos: whether a text begins with the tokenizer's bos token, and ends with eos,
        where it has them. Without a beginning its first token is not predicted.
      stride: tokens from one window of a text to the next; None is `seq_len`. Smaller
        ones are for evaluations (evals.<name>.objective.stride), where a target then
        has at least seq_len - stride tokens before it, but for those of the beginning.
    """

    column: str = "text"
    bos: bool = True
    eos: bool = True
    stride: int | None = None

    can: ClassVar[frozenset[str]] = TeacherForcing.can | {"bytes"}

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"causal"}

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def prompt(self, codec: Any, text: str) -> list[int]:
        """Returns the text's tokens as a row begins, without an end token."""
        first = [codec.bos_id] if self.bos and codec.bos_id is not None else []
        return first + codec.encode(text)

    def layout(self, codec: Any, *, seq_len: int, pack: bool) -> Layout:
        stride = self.stride or seq_len
        if stride > seq_len:
            raise ConfigError(
                "objective.stride", str(stride), f"at most seq_len={seq_len}"
            )
        return Windows(
            length=seq_len,
            stride=stride,
            # Windows that share tokens count from their own place on, each in its row.
            pack=pack and stride == seq_len,
            bos_id=codec.bos_id if self.bos else None,
            eos_id=codec.eos_id if self.eos else None,
            column=self.column,
        )

    def transforms(
        self, index: Index, codec: Any, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "targets", "weights")
        pad = transforms.PadSides(seq_len, seq_len, codec.pad_id or 0)
        return NextToken(), pad, transforms.Keep(names)
