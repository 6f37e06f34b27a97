"""Sequence to sequence: predicts a target text from a source text.

Translation and summarisation. Sutskever et al. 2014 and Vaswani et al. 2017: an encoder
reads the source; a decoder predicts each target token from the true tokens before it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from lm.data import transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import Pairs, texts_of
from lm.data.sources.base import Record
from lm.objectives.base import SOURCE, Rows
from lm.objectives.teacher_forcing import TeacherForcing, start_and_end
from lm.tokenizers.base import Codec

BOUNDS = {"source_len": "[2, 16777216]"}


@dataclasses.dataclass(frozen=True)
class Objective(TeacherForcing):
    """Options of `seq2seq`; `seq_len` is the length of the decoder.

    With `data.pack` a row holds several pairs; each is a segment in the encoder and in
    the decoder.

    Attributes:
      source, target: the columns of the texts.
      prefix: a text before each source, such as T5's "summarize: ".
      join: the separator between the texts of a source that is a list.
      targets: for a target that is a list, whether to train on its first text, or on
        each text as a separate pair. Evaluators that generate always use all of them
        as references.
      source_len: the length of the encoder; None is `seq_len`.
      too_long: what to do with a pair that does not fit: refuse it, cut the end, or
        skip it. "skip" also skips pairs with a blank text.
    """

    source: str = "source"
    target: str = "target"
    prefix: str = ""
    join: str = " "
    targets: Literal["first", "each"] = "first"
    source_len: int | None = None
    too_long: Literal["error", "cut", "window", "skip"] = "error"

    can: ClassVar[frozenset[str]] = TeacherForcing.can | {"references"}

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"causal", "encode"}

    @property
    def gives(self) -> frozenset[str]:
        return SOURCE

    def lengths(self, seq_len: int) -> dict[str, int]:
        source = {"objective.source_len": self.source_len} if self.source_len else {}
        return super().lengths(seq_len) | source

    def small(self) -> dict[str, Any]:
        too_long = "cut" if self.too_long == "error" else self.too_long
        source_len = self.source_len and min(self.source_len, 256)
        changes = {"source_len": source_len, "too_long": too_long}
        return super().small() | changes

    def columns(self) -> tuple[str, ...]:
        return (self.source, self.target)

    def prompt(self, codec: Codec, text: str) -> list[int]:
        return super().prompt(codec, self.prefix + text)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        start_and_end(codec, "seq2seq")
        return Pairs(
            source_length=self.source_len or seq_len,
            target_length=seq_len,
            overhead=1,
            pack=pack,
            source=self.source,
            target=self.target,
            prefix=self.prefix,
            join=self.join,
            targets=self.targets,
            too_long=self.too_long,
        )

    def references(self, record: Record) -> tuple[str, ...]:
        return texts_of(record, self.target)

    def prompt_of(self, example: Rows) -> list[int]:
        return example["source_inputs"][example["source_segment_ids"] == 1].tolist()

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        pad = transforms.PadSides(
            self.source_len or seq_len, seq_len, codec.pad_id or 0
        )
        return (
            transforms.SourceTarget(*start_and_end(codec, "seq2seq")),
            pad,
            transforms.Keep(("targets", "weights", *pad.SOURCE, *pad.OWN[:3])),
        )
