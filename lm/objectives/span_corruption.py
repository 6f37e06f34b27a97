"""Span corruption: removes short spans of a text, which the decoder predicts.

Raffel et al. 2020 (T5), section 3.1.4: in the source a sentinel token replaces each
span; the target is each sentinel followed by its span, and an end token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from lm.data import spans, transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import Chunks
from lm.errors import ConfigError, DataError
from lm.objectives.base import SOURCE
from lm.objectives.teacher_forcing import TeacherForcing, start_and_end
from lm.tokenizers.base import Codec

BOUNDS = {"rate": "(0, 1)", "span": "[1, inf)", "target_len": "[3, 16777216]"}


@dataclasses.dataclass(frozen=True)
class Corruption(TeacherForcing):
    """The base of objectives that remove tokens from a text and predict them.

    `seq_len` is the length of the encoder. The raw length of a piece of text follows
    from it: the largest at which the corrupted source fits `seq_len` and the target
    fits `target_len`. With `data.pack` a row holds pieces of several documents; each is
    corrupted separately and is a segment in the encoder and in the decoder.

    Attributes:
      target_len: the length of the decoder; None is the length that the raw tokens
        need.
      column: the column of the source that holds the text.
    """

    target_len: int | None = None
    column: str = "text"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"causal", "encode"}

    @property
    def gives(self) -> frozenset[str]:
        return SOURCE

    def lengths(self, seq_len: int) -> dict[str, int]:
        target = {"objective.target_len": self.target_len} if self.target_len else {}
        return super().lengths(seq_len) | target

    def small(self) -> dict[str, Any]:
        target_len = self.target_len and min(self.target_len, 128)
        return super().small() | {"target_len": target_len}

    def forms(self, codec: Codec) -> tuple[spans.Form, ...]:
        """Returns the corruptions of which one is drawn for each piece of text."""
        raise NotImplementedError

    def weights(self) -> tuple[float, ...]:
        """Returns how often each of `forms` is drawn, relative to the others."""
        return (1.0,)

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def _lengths(
        self, forms: tuple[spans.Form, ...], seq_len: int
    ) -> tuple[int, int, int]:
        """Returns the lengths of a raw piece, of the encoder and of the decoder."""
        raw = spans.raw_length(forms, seq_len, self.target_len)
        if not raw:
            raise ConfigError(
                "seq_len",
                f"{seq_len} with objective.target_len={self.target_len}",
                "room for a text of two tokens, its sentinels and end tokens",
                "raise both",
            )
        needed = max(form.lengths(raw)[1] for form in forms)
        return raw, seq_len, self.target_len or needed

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        start_and_end(codec, "span corruption")
        forms = self.forms(codec)
        raw, *capacity = self._lengths(forms, seq_len)
        needed = max(form.sentinels(raw) for form in forms)
        if len(codec.sentinel_ids) < needed:
            raise DataError(
                "tokenizer",
                f"{len(codec.sentinel_ids)} sentinels",
                f"{needed}, for texts of {raw} tokens (seq_len={seq_len})",
                f"use tokenizer.name=spm and set extra_ids={max(needed, 100)}",
            )
        return Chunks(raw, tuple(capacity), forms, pack, column=self.column)

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        forms = self.forms(codec)
        _, source, target = self._lengths(forms, seq_len)
        pad = transforms.PadSides(source, target, codec.pad_id or 0)
        return (
            spans.Corrupt(forms, self.weights(), codec.sentinel_ids),
            transforms.SourceTarget(*start_and_end(codec, "span corruption")),
            pad,
            transforms.Keep(("targets", "weights", *pad.SOURCE, *pad.OWN[:3])),
        )


@dataclasses.dataclass(frozen=True)
class Objective(Corruption):
    """Options of `span_corruption`; for the lengths see `Corruption`.

    Attributes:
      rate: share of the tokens that is removed.
      span: mean length of a span.
    """

    rate: float = 0.15
    span: float = 3.0

    def forms(self, codec: Codec) -> tuple[spans.Form, ...]:
        return (spans.Spans(self.rate, self.span),)
