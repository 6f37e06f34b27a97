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
from lm.errors import Rule
from lm.models.base import Head, Headed, Pooler, Row, Sequence
from lm.models.blocks.heads import Linear
from lm.objectives import base
from lm.objectives.base import Batch, Rows, Terms
from lm.objectives.teacher_forcing import start_and_end
from lm.ops import losses
from lm.tokenizers.base import Codec

BOUNDS = {"classes": "[2, 1000000]", "separators": "[1, 8]"}

SHOWN = 10  # classes of which `show` writes the probability
# summary -> where the head reads the hidden states of a row, the activation of the
# pooler, and whether the output layer has a bias.
HEADS: dict[str, tuple[Row, Pooler, bool]] = {
    "tanh": ("first", "tanh", True),
    "relu": ("first", "relu", True),
    "last": ("last", None, False),
    "decoder": ("last", "tanh", True),
    "max": ("max", None, True),
    "mean": ("mean", None, True),
}
PLAIN = ("last", "max", "mean")  # a row is the texts without [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `classification`.

    Attributes:
      classes: the number of classes.
      text, pair: the columns of the first text, and of the second if there is one.
      label: the column of the label.
      labels: the labels in the order of their ids; empty if they are 0, 1, ...
      summary: the hidden state from which the class is predicted. "tanh" and "relu":
        that of [CLS], after a dense layer and this activation (BERT and RoBERTa;
        DistilBERT). "last": that of the last token, the only one of a decoder that
        depends on all others; a row is then the concatenated texts (Radford et al.
        2018, section 3.2, without delimiters). "decoder": an encoder reads the texts,
        each followed by eos, and a decoder reads them again, shifted by one; its last
        state goes through a dense layer and tanh (Lewis et al. 2020, section 3.1; T5
        in other libraries). "max" and "mean": the largest value, or the mean, of each
        number over all tokens, for recurrent and convolutional networks (Collobert et
        al. 2011, section 3.2.2); a row is as for "last".
      separators: the number of [SEP] between two texts, for "tanh" and "relu": 1 in
        BERT, 2 in RoBERTa.
      bos: whether a row of summary="last", "max" or "mean" begins with the tokenizer's
        bos token, if it has one.
      too_long: what to do with texts that do not fit a row: refuse them, cut the end of
        the longer one, or skip the record. A record without text is refused, kept or
        skipped accordingly; "cut" refuses it too if its row would have no token.
    """

    classes: int = 2
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()
    summary: Literal["tanh", "relu", "last", "decoder", "max", "mean"] = "tanh"
    separators: int = 1
    bos: bool = True
    too_long: Literal["error", "cut", "window", "skip"] = "cut"

    can: ClassVar[frozenset[str]] = frozenset({"classes", "show"})

    @property
    def needs(self) -> frozenset[str]:
        own = {"tanh": ("whole",), "relu": ("whole",), "decoder": ("encode",)}
        return frozenset({"hidden", "head", *own.get(self.summary, ())})

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
        if self.summary in PLAIN:
            overhead = len(self._start(codec))
        elif self.summary == "decoder":
            start_and_end(codec, "classification")
            overhead = 1 + several
        else:
            self._delimiters(codec)
            overhead = 2 + several * self.separators
        return Labelled(
            columns=self.columns(),
            label=self.label,
            names=self.labels,
            classes=self.classes,
            length=seq_len,
            overhead=overhead,
            too_long=self.too_long,
            # A row must have a token, whose state the head reads.
            least=int(overhead == 0),
        )

    def _delimiters(self, codec: Codec) -> tuple[int, int]:
        fix = "without them a row is read at its last token: objective.summary=last"
        return base.delimiters(codec, f"objective.summary={self.summary}", fix)

    def _start(self, codec: Codec) -> tuple[int, ...]:
        """Returns the special tokens at the start of a row without delimiters."""
        return (codec.bos_id,) if self.bos and codec.bos_id is not None else ()

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        pad = transforms.Pad(seq_len, codec.pad_id or 0)
        names: tuple[str, ...] = ("inputs", "positions", "segment_ids", "token_types")
        row: tuple[Callable, ...]
        if self.summary in PLAIN:
            row = (transforms.Join(seq_len, self._start(codec)), pad)
        elif self.summary == "decoder":
            start, end = start_and_end(codec, "classification")
            sides = transforms.PadSides(seq_len, seq_len, codec.pad_id or 0)
            join = transforms.Join(seq_len, between=(end,), end=(end,))
            row = (join, Reread(start), sides)
            names = (*sides.SOURCE, *sides.OWN[:3])
        else:
            ids = self._delimiters(codec)
            row = (transforms.WrapPair(seq_len, *ids, self.separators), pad)
        return (*row, Label(), transforms.Keep((*names, "labels", "label_weights")))

    def _output(self, model: Sequence, batch: Batch, train: bool) -> tuple:
        """Returns (logits (B, classes), labels (B,), weights (B,))."""
        hidden = model(batch, train=train)
        headed = cast(Headed, model)  # `needs` requires "head".
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

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the texts, the label and the probabilities, with the names of classes.

        Of more than SHOWN classes the most probable ones are shown.
        """
        found = predictions["probabilities"][row]
        order = np.argsort(-found, kind="stable").tolist()
        named = [f"{self._class_name(k)} {found[k]:.3f}" for k in order[:SHOWN]]
        more = len(order) - len(named)
        texts = self._texts(batch, codec, row)
        parts = {
            **dict(zip(self.columns(), map(codec.decode, texts))),
            "label": self._class_name(int(batch["labels"][row])),
            "predicted": self._class_name(order[0]),
            "probabilities": ", ".join(named) + f" and {more} more" * bool(more),
        }
        return "\n".join(f"{name}: {value}" for name, value in parts.items())

    def _texts(self, batch: Rows, codec: Codec, row: int) -> list[list[int]]:
        """Returns the token ids of each text of a row."""
        if self.summary == "decoder":
            ids = batch["source_inputs"][row][batch["source_segment_ids"][row] > 0]
            ends = np.flatnonzero(ids == codec.eos_id)
            return [part.tolist() for part in np.split(ids, ends)[: len(ends)]]
        used = batch["segment_ids"][row] > 0
        types = batch["token_types"][row]
        return [
            batch["inputs"][row][used & (types == n)].tolist()
            for n in range(len(self.columns()))
        ]

    def _class_name(self, number: int) -> str:
        """Returns the label of a class; its number where `labels` has none for it."""
        return self.labels[number] if number < len(self.labels) else str(number)


@dataclasses.dataclass(frozen=True)
class Reread:
    """Copies a row for the encoder, and shifts it right as the decoder's input.

    Adds `source_inputs`, `source_positions` and `source_segment_ids`. `inputs` then
    begin with `start` and lack the last token.
    """

    start: int

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        names = ("inputs", "positions", "segment_ids")
        source = {f"source_{name}": example[name] for name in names}
        inputs = np.asarray([self.start, *example["inputs"][:-1]], np.int32)
        return example | source | {"inputs": inputs}


@dataclasses.dataclass(frozen=True)
class Label:
    """Adds `labels` and `label_weights`: the label of a row, with weight 1."""

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        labels = {"labels": np.int32(example["labels"])}
        return example | labels | {"label_weights": np.float32(1)}
