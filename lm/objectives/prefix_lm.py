"""Prefix language modelling: splits a text at random and predicts the second part.

Liu et al. 2018 and Raffel et al. 2020, section 3.2.3: attention is bidirectional within
the prefix and causal after it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from lm.data import scoring, spans, transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import Chunks
from lm.data.scoring import Scored, Settings, Text
from lm.errors import ConfigError
from lm.objectives.base import SOURCE
from lm.objectives.teacher_forcing import TeacherForcing, start_and_end
from lm.tokenizers.base import Codec

BOUNDS = {"target_len": "[2, 16777216]"}


@dataclasses.dataclass(frozen=True)
class Objective(TeacherForcing):
    """Options of `prefix_lm`.

    For a decoder, a row of `seq_len` tokens holds prefix and rest, and the array
    `prefix` marks the positions that the whole text sees. For an encoder-decoder the
    prefix is the source, of at most `seq_len` tokens, and the rest is the target. The
    split point is uniform over a piece of text.

    Attributes:
      kind: the kind of model that the rows are for; it must agree with the model's.
      target_len: the length of the decoder in an encoder-decoder; None is `seq_len`.
      column: the column of the source that holds the text.
    """

    kind: Literal["decoder", "encoder_decoder"] = "decoder"
    target_len: int | None = None
    column: str = "text"

    FORM = spans.Suffix(rate=0.5, sentinel=False)

    @property
    def needs(self) -> frozenset[str]:
        own = {"causal", "encode"} if self.kind == "encoder_decoder" else {"prefix"}
        return super().needs | own

    @property
    def gives(self) -> frozenset[str]:
        return SOURCE if self.kind == "encoder_decoder" else frozenset({"prefix"})

    def lengths(self, seq_len: int) -> dict[str, int]:
        target = {"objective.target_len": self.target_len} if self.target_len else {}
        return super().lengths(seq_len) | target

    def small(self) -> dict[str, Any]:
        target_len = self.target_len and min(self.target_len, 128)
        return super().small() | {"target_len": target_len}

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def sees_prompt(self) -> bool:
        return self.kind == "decoder"

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Encodes a text as a prefix; a decoder's begins with the start token."""
        if self.kind == "encoder_decoder":
            return super().prompt(codec, text)
        start, _ = start_and_end(codec, "prefix_lm")
        return [start, *codec.encode(text)]

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        if self.kind == "encoder_decoder":
            return super().score_fields
        return (("text",), ("context", "continuation"))

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes rows of a text after its context, which is the prefix."""
        if self.kind == "encoder_decoder":
            return super().score_rows(codec, text, settings, limit=limit)
        start, end = start_and_end(codec, "prefix_lm")
        before, ids = scoring.split(codec, text)
        ids = scoring.with_end(ids, end) if settings.end else ids
        return scoring.left_to_right(
            [start, *before], ids, settings, limit, prefix=True
        )

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        _, end = start_and_end(codec, "prefix_lm")
        if self.kind == "decoder":
            form = Uncorrupted()
            return Chunks(seq_len, (seq_len,), (form,), pack, end, self.column)
        lengths = (seq_len, self.target_len or seq_len)
        raw = spans.raw_length((self.FORM,), *lengths)
        if not raw:
            expected = "room for two tokens, and an end token on each side"
            raise ConfigError("seq_len", f"lengths {lengths}", expected, "raise them")
        return Chunks(raw, lengths, (self.FORM,), pack, column=self.column)

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        start, end = start_and_end(codec, "prefix_lm")
        pad_id = codec.pad_id or 0
        pad = transforms.PadSides(seq_len, self.target_len or seq_len, pad_id)
        if self.kind == "decoder":
            pad = transforms.PadSides(0, seq_len, pad_id)
            return spans.PrefixAndRest(start), pad, transforms.Keep(pad.OWN)
        return (
            spans.Corrupt((self.FORM,), (1.0,), ()),
            transforms.SourceTarget(start, end),
            pad,
            transforms.Keep((*pad.SOURCE, *pad.OWN[:5])),
        )


@dataclasses.dataclass(frozen=True)
class Uncorrupted:
    """The length of a decoder's piece of text, whose tokens all stay in one row."""

    def lengths(self, n: int) -> tuple[int, ...]:
        return (n,)
