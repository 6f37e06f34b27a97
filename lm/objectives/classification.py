"""Classes or a number for one text or two (Devlin et al. 2019, section 4.1)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm.data import transforms
from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.layouts import Labelled
from lm.data.sources.base import Record
from lm.errors import Rule
from lm.models import base as models
from lm.models.base import Head, Headed, Pooler, Row
from lm.models.blocks.heads import Linear
from lm.objectives import base
from lm.objectives.base import Asked, Batch, Lesson, Rows, Terms
from lm.objectives.targets import KINDS, Kind, Options
from lm.objectives.teacher_forcing import start_and_end
from lm.ops import losses
from lm.ops.distillation import Soft
from lm.tokenizers.base import Codec

BOUNDS = {
    "classes": "[2, 1000000]",
    "separators": "[1, 8]",
    "label_smoothing": "[0, 1)",
    "focal": "[0, 100]",
    "scale": "(0, inf)",
}

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
      kind: of the labels. "softmax": one class of several. "sigmoid": any number of
        classes at once, as a list or as a text with `separator`; the loss is the mean
        over the classes. "regression": a number; the loss is the squared error of the
        output, which times `scale` is the prediction, and is not clipped.
      classes: the number of classes, not for a regression.
      text, pair: the columns of the first text, and of the second if there is one.
      label: the column of the label; None is for records that have none.
      labels: the labels in the order of their ids; empty if they are 0, 1, ...
      separator: what parts the labels of a text, for "sigmoid".
      scale: the factor of a regression's output, such as 5 for labels from 0 to 5.
      between: the least and the greatest label of a regression; others are refused.
      class_weights: the weight of each row in the training loss by its class, for
        "softmax": "none", "balanced" (the rows of its source, divided by the classes
        and by the rows of this class), or {label: weight}, 1 where one is left out.
        The loss is the sum of weighted losses, divided by the sum of weights; figures
        of an evaluation are not weighted.
      weight: the column of a factor of a row's weight in the training loss, or None.
      label_smoothing: the share of a target that is spread over all classes in training
        (Szegedy et al. 2016, section 7); for "sigmoid" over yes and no.
      focal: the exponent of the focal loss in training (Lin et al. 2017, equation 4).
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
        the longer one, divide it into windows, or skip the record. Each window is a row
        of the same label, and a prediction is made of the mean of their logits. A
        record without text is refused, kept or skipped accordingly; "cut" and "window"
        refuse it too if its row would have no token.
    """

    kind: Literal["softmax", "sigmoid", "regression"] = "softmax"
    classes: int = 2
    text: str = "text"
    pair: str | None = None
    label: str | None = "label"
    labels: tuple[str, ...] = ()
    separator: str = ","
    scale: float = 1.0
    between: tuple[float, ...] = ()
    class_weights: str | dict[str, float] = "none"
    weight: str | None = None
    label_smoothing: float = 0.0
    focal: float = 0.0
    summary: Literal["tanh", "relu", "last", "decoder", "max", "mean"] = "tanh"
    separators: int = 1
    bos: bool = True
    too_long: Literal["error", "cut", "window", "skip"] = "cut"

    @property
    def can(self) -> frozenset[str]:  # type: ignore[override]
        predicts = "numbers" if self.kind == "regression" else "classes"
        return frozenset({predicts, "labels", "show", "answers", "lesson"})

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind](
            Options(
                column=self.label or "",
                names=self.labels,
                classes=self.classes,
                separator=self.separator,
                between=self.between,
                scale=self.scale,
                label_smoothing=self.label_smoothing,
                focal=self.focal,
            )
        )

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
        found, expected = "None", "a column: a run is trained with labels"
        yield Rule(self.label is not None, "objective.label", found, expected)
        yield from self._weight_rules()
        least, most = self.between if len(self.between) == 2 else (0.0, 0.0)
        expected = "(least, most), or () for any number"
        holds = not self.between or least < most
        yield Rule(holds, "objective.between", self.between, expected)
        found = f"{self.focal:g} with label_smoothing {self.label_smoothing:g}"
        expected = "one of them: a smoothed loss is no -log p"
        holds = not (self.focal and self.label_smoothing)
        yield Rule(holds, "objective.focal", found, expected)
        number = self.kind == "regression"
        for name in ("labels", "label_smoothing", "focal"):
            value = getattr(self, name)
            expected = "kind='softmax' or 'sigmoid': a regression has no classes"
            yield Rule(not (number and value), f"objective.{name}", value, expected)
        empty = not self.separator.strip()
        yield Rule(not empty, "objective.separator", "a blank", "a visible character")

    def _weight_rules(self) -> Iterator[Rule]:
        """Yields the conditions on `class_weights`."""
        where, given = "objective.class_weights", self.class_weights
        words = "none, balanced or {label: weight}"
        if isinstance(given, str):
            yield Rule(given in ("none", "balanced"), where, repr(given), words)
        else:
            names = self.class_names()
            unknown = [name for name in given if name not in names]
            expected = f"labels of {', '.join(names[:20])}"
            yield Rule(not unknown, where, f"{unknown[:1]}", expected)
            low = [f"{name}={value:g}" for name, value in given.items() if value < 0]
            yield Rule(not low, where, ", ".join(low), "weights of at least 0")
        expected = "none, since only rows of one class have a class's weight"
        holds = self.kind == "softmax" or given == "none"
        yield Rule(holds, where, f"{given!r} with kind={self.kind!r}", expected)

    def heads(self) -> tuple[Head, ...]:
        row, pooler, use_bias = HEADS[self.summary]
        outputs = self._kind.outputs
        dense = functools.partial(Linear, outputs=outputs, use_bias=use_bias)
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
            labels=None if self.label is None else self._kind.labels(),
            weight=self.weight,
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

    def row_lengths(self, layout: Any, index: Index) -> RowLengths:
        return layout.row_lengths(index)

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
        if self.label is None:
            return (*row, transforms.Keep(names))
        label = Label(self._kind.labels().target, self._weights_of(index))
        names += ("labels", "label_weights", "loss_weights")
        return (*row, label, transforms.Keep(names))

    def _weights_of(self, index: Index) -> tuple[float, ...]:
        """Returns the weight of each class in the loss; () where all are 1."""
        if isinstance(self.class_weights, dict):
            given = self.class_weights
            return tuple(float(given.get(k, 1.0)) for k in self.class_names())
        if self.class_weights == "none":
            return ()
        counts = np.bincount(index.fields["labels"], minlength=self.classes)
        return tuple((len(index) / self.classes / np.maximum(counts, 1)).tolist())

    def _logits(
        self, model: models.States, batch: Batch, train: bool
    ) -> Float[Array, "B C"]:
        """Returns the output of the head, float32."""
        return self._head(model, model(batch, train=train), batch, train)

    def _head(
        self,
        model: models.States,
        hidden: Float[Array, "B T D"],
        batch: Batch,
        train: bool,
    ) -> Float[Array, "B C"]:
        headed = cast(Headed, model)  # `needs` requires "head".
        return headed.head("classify", hidden, batch["segment_ids"], train=train)

    def loss(self, model: models.States, batch: Batch, *, train: bool) -> Terms:
        return self.lesson(model, batch, train=train).terms

    def lesson(self, model: models.States, batch: Batch, *, train: bool) -> Lesson:
        hidden, weights = model(batch, train=train), batch["loss_weights"]
        logits = self._head(model, hidden, batch, train)
        each = self._kind.losses(logits, batch["labels"], train=True)
        terms = {"classify": losses.weighted(each, weights)}
        return Lesson(terms, hidden, {"classify": Soft(logits, weights, self.kind)})

    def agreement(self, codec: Codec) -> dict[str, Any]:
        if self.summary in PLAIN:
            around: tuple[int, ...] = self._start(codec)
        elif self.summary == "decoder":
            around = start_and_end(codec, "classification")
        else:
            cls_id, sep_id = self._delimiters(codec)
            around = cls_id, *[sep_id] * self.separators
        number = self.kind == "regression"
        return {
            "objective.kind": self.kind,
            "objective.labels": () if number else self.class_names(),
            "objective.scale": self.scale if number else 1.0,
            "the texts of a row": len(self.columns()),
            "the special tokens of a row": tuple(map(codec.token, around)),
        }

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"classify": batch["loss_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        empty = jnp.zeros((1, self._kind.outputs))
        target = self._kind.labels().target(0)
        names = self._kind.measures(empty, jnp.asarray(target)[None])
        return ("classify_loss", *(f"classify_{name}" for name in names))

    def metrics(self, model: models.States, batch: Batch) -> Terms:
        """Returns the plain loss, and what the kind of the labels measures."""
        logits, targets = self._logits(model, batch, False), batch["labels"]
        found = {"loss": self._kind.losses(logits, targets, train=False)}
        found |= self._kind.measures(logits, targets)
        weights = batch["label_weights"]
        return {f"classify_{k}": losses.weighted(v, weights) for k, v in found.items()}

    def predict(self, model: models.States, batch: Batch) -> dict[str, Any]:
        """Returns `logits` (B, C) and `probabilities` (B, C), or `scores` (B,)."""
        return self.conclude(self._logits(model, batch, False))

    def conclude(self, logits: Float[Array, "B C"]) -> dict[str, Any]:
        return self._kind.predict(logits)

    def label_of(self, target: np.ndarray | np.generic) -> Any:
        return self._kind.name(target)

    def class_names(self) -> tuple[str, ...]:
        return tuple(self._class_name(n) for n in range(self.classes))

    def unlabelled(self) -> "Objective":
        return dataclasses.replace(self, label=None, weight=None)

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        return self._kind.says

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the answer by the mean of the logits of the record's windows."""
        if not rows:
            fields = {field for fields in self.says.values() for field in fields}
            return dict.fromkeys([*sorted(fields), "truncated"])
        said = self._kind.answer([row.predictions for row in rows])
        return said | {"truncated": sum(int(row.row["cut"]) for row in rows)}

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the texts, the label and the prediction, with the names of classes.

        Of more than SHOWN classes the most probable ones are shown.
        """
        texts = self._texts(batch, codec, row)
        parts = dict(zip(self.columns(), map(codec.decode, texts)))
        own = {name: array[row] for name, array in predictions.items()}
        if self.kind == "regression":
            parts["label"] = f"{self.label_of(batch['labels'][row]):g}"
            parts["predicted"] = f"{float(own['scores']):.4g}"
        else:
            found = own["probabilities"]
            order = np.argsort(-found, kind="stable").tolist()
            named = [f"{self._class_name(k)} {found[k]:.3f}" for k in order[:SHOWN]]
            more = len(order) - len(named)
            parts["label"] = listed(self.label_of(batch["labels"][row]))
            parts["predicted"] = listed(
                self.label_of(own["logits"] > 0)
                if self.kind == "sigmoid"
                else self._class_name(order[0])
            )
            parts["probabilities"] = ", ".join(named) + f" and {more} more" * bool(more)
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
        return self._kind.options.class_name(number)


def listed(labels: str | list[str]) -> str:
    """Formats one label or several."""
    return labels if isinstance(labels, str) else ", ".join(labels)


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
    """Adds `labels` and `label_weights`, which is 1, and `loss_weights`.

    Args:
      target: what the row keeps of its label -> the target.
      weights: the weight of each class in the loss; () is 1 for all.
    """

    target: Callable[[Any], np.ndarray]
    weights: tuple[float, ...] = ()

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        weight = example.get("weight", 1.0)
        if self.weights:
            weight *= self.weights[int(example["labels"])]
        return example | {
            "labels": self.target(example["labels"]),
            "label_weights": np.float32(1),
            "loss_weights": np.float32(weight),
        }
