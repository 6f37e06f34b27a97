"""Classification of a text or of a pair of texts (Devlin et al. 2019, section 4.1)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import jax
import numpy as np

from lm.data import transforms
from lm.data.index import Index, Layout
from lm.data.layouts import Labelled
from lm.errors import DataError, Rule
from lm.models.base import Head, Headed, Sequence
from lm.models.blocks.heads import Linear
from lm.objectives import base
from lm.objectives.base import Batch, Terms
from lm.objectives.teacher_forcing import start_and_end
from lm.ops import losses
from lm.tokenizers import Codec

BOUNDS = {"classes": "[2, 1000000]", "separators": "[1, 8]"}

Row = Literal["first", "last"] | None
Pooler = Literal["tanh", "relu"] | None
# summary -> the token whose state is read, the pooler's function, and whether the dense
# layer behind it has a bias.
HEADS: dict[str, tuple[Row, Pooler, bool]] = {
    "tanh": ("first", "tanh", True),
    "relu": ("first", "relu", True),
    "last": ("last", None, False),
    "decoder": ("last", "tanh", True),
}


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """config.objective of `classification`.

    Attributes:
      classes: how many classes there are.
      text, pair: the columns of the first text, and of the second if there is one.
      label: the column of the label.
      labels: the labels in the order of their ids; empty where they are 0, 1, ...
      summary: where a row's class is read. "tanh" and "relu": at [CLS], through a dense
        layer and that function (BERT and RoBERTa; DistilBERT). "last": at the last
        token, as decoders must, whose first one sees no other; a row is then the texts
        one after the other (Radford et al. 2018, section 3.2, without delimiters).
        "decoder": an encoder reads the texts, each with the eos token after it, and a
        decoder says them again; its state where it says the last eos goes through a
        dense layer and tanh (Lewis et al. 2020, section 3.1; T5 in other libraries).
      separators: how many [SEP] stand between two texts, with "tanh" and "relu": 1 in
        BERT, 2 in RoBERTa.
      bos: whether a row of summary="last" begins with the tokenizer's bos token, where
        it has one.
      too_long: what becomes of texts that do not fit a row: an error, cut at the end of
        the longer one, or left out. A record without text is refused, kept, or left
        out in the same way; where a row would be empty it is refused by "cut" too.
    """

    classes: int = 2
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()
    summary: Literal["tanh", "relu", "last", "decoder"] = "tanh"
    separators: int = 1
    bos: bool = True
    too_long: Literal["error", "cut", "window", "skip"] = "cut"

    can: ClassVar[frozenset[str]] = frozenset({"classes"})

    @property
    def needs(self) -> frozenset[str]:
        own = {"last": (), "decoder": ("encode",)}.get(self.summary, ("whole",))
        return frozenset({"hidden", "head", *own})

    @property
    def gives(self) -> frozenset[str]:
        return base.SOURCE if self.summary == "decoder" else frozenset({"token_types"})

    @property
    def packs(self) -> bool:
        return False

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        names = self.labels
        yield Rule(
            len(names) <= self.classes,
            "objective.classes",
            f"{self.classes} with {len(names)} objective.labels",
            f"at least {len(names)}, one class for each label",
            f"set objective.classes={len(names)}.",
        )
        twice = [name for name in names if names.count(name) > 1]
        found, expected = f"{twice[:1]} twice", "each label once"
        yield Rule(not twice, "objective.labels", found, expected)

    def heads(self) -> tuple[Head, ...]:
        row, pooler, use_bias = HEADS[self.summary]
        dense = functools.partial(Linear, outputs=self.classes, use_bias=use_bias)
        return (Head("classify", dense, row=row, pooler=pooler),)

    def columns(self) -> tuple[str, ...]:
        return (self.text, self.pair) if self.pair else (self.text,)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        several = len(self.columns()) - 1
        if self.summary == "last":
            overhead = len(self._start(codec))
        elif self.summary == "decoder":
            start_and_end(codec, "classification")
            overhead = 1 + several
        elif codec.cls_id is None or codec.sep_id is None:
            raise DataError(
                "tokenizer",
                "no [CLS] or [SEP]",
                f"both, for objective.summary={self.summary}",
                "without them a row is read at its last token: objective.summary=last",
            )
        else:
            overhead = 2 + several * self.separators
        return Labelled(
            columns=self.columns(),
            label=self.label,
            names=self.labels,
            classes=self.classes,
            length=seq_len,
            overhead=overhead,
            too_long=self.too_long,
            least=int(overhead == 0),  # A row is read at its last token.
        )

    def _start(self, codec: Codec) -> tuple[int, ...]:
        return (codec.bos_id,) if self.bos and codec.bos_id is not None else ()

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        pad = transforms.Pad(seq_len, codec.pad_id or 0)
        names: tuple[str, ...] = ("inputs", "positions", "segment_ids", "token_types")
        row: tuple[Callable, ...]
        if self.summary == "last":
            row = (transforms.Join(seq_len, self._start(codec)), pad)
        elif self.summary == "decoder":
            start, end = start_and_end(codec, "classification")
            sides = transforms.PadSides(seq_len, seq_len, codec.pad_id or 0)
            join = transforms.Join(seq_len, between=(end,), end=(end,))
            row = (join, Again(start), sides)
            names = (*sides.SOURCE, *sides.OWN[:3])
        else:
            ids = (codec.cls_id, codec.sep_id)
            row = (transforms.WrapPair(seq_len, *ids, self.separators), pad)
        return (*row, Label(), transforms.Keep((*names, "labels", "label_weights")))

    def _output(self, model: Sequence, batch: Batch, train: bool) -> tuple:
        hidden = model(batch, train=train)
        headed = cast(Headed, model)  # as `needs` has asked
        logits = headed.head("classify", hidden, batch["segment_ids"], train=train)
        return logits, batch["labels"], batch["label_weights"]

    def loss(self, model: Sequence, batch: Batch, *, train: bool) -> Terms:
        output = self._output(model, batch, train)
        return {"classify": losses.cross_entropy(*output)}

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"classify": batch["label_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("classify_loss", "classify_accuracy")

    def metrics(self, model: Sequence, batch: Batch) -> Terms:
        output = self._output(model, batch, False)
        return {
            "classify_loss": losses.cross_entropy(*output),
            "classify_accuracy": losses.correct(*output),
        }

    def predict(self, model: Sequence, batch: Batch) -> dict[str, Any]:
        """Returns `probabilities` (B, classes)."""
        logits = self._output(model, batch, False)[0]
        return {"probabilities": jax.nn.softmax(logits)}


@dataclasses.dataclass(frozen=True)
class Again:
    """The row as an encoder reads it, and as a decoder does that is to say it again.

    Adds `source_inputs`, `source_positions`, `source_segment_ids`; `inputs` begin with
    `start` and end before the last token.
    """

    start: int

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        names = ("inputs", "positions", "segment_ids")
        source = {f"source_{name}": example[name] for name in names}
        inputs = np.asarray([self.start, *example["inputs"][:-1]], np.int32)
        return example | source | {"inputs": inputs}


@dataclasses.dataclass(frozen=True)
class Label:
    """The row's label, with weight 1."""

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        labels = {"labels": np.int32(example["labels"])}
        return example | labels | {"label_weights": np.float32(1)}
