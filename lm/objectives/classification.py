"""Classification of a text or of a pair of texts (Devlin et al. 2019, section 4.1)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lm.data import transforms
from lm.data.index import Index, Layout
from lm.data.layouts import Labelled
from lm.errors import DataError
from lm.models.transformer import Head
from lm.objectives.base import Batch, Terms
from lm.ops import losses

BOUNDS = {"classes": "[2, 1000000]"}


@dataclasses.dataclass(frozen=True)
class Objective:
    """config.objective of `classification`.

    Attributes:
      classes: how many classes there are.
      text, pair: the columns of the first text, and of the second if there is one.
      label: the column of the label.
      labels: the labels in the order of their ids; empty where they are 0, 1, ...
    """

    classes: int = 2
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()

    def heads(self) -> tuple[Head, ...]:
        return (Head("classify", "pooled", self.classes),)

    def columns(self) -> tuple[str, ...]:
        return (self.text, self.pair) if self.pair else (self.text,)

    def layout(self, codec: Any, *, seq_len: int, pack: bool) -> Layout:
        if codec.cls_id is None or codec.sep_id is None:
            raise DataError(
                "tokenizer", "no [CLS] or [SEP]", "both, for objective classification"
            )
        return Labelled(self.columns(), self.label, self.labels, self.classes)

    def transforms(
        self, index: Index, codec: Any, *, seq_len: int
    ) -> tuple[Callable, ...]:
        names = ("inputs", "positions", "segment_ids", "token_types", "labels")
        return (
            transforms.WrapPair(seq_len, codec.cls_id, codec.sep_id),
            transforms.Pad(seq_len, codec.pad_id or 0),
            Label(),
            transforms.Keep((*names, "label_weights")),
        )

    def _output(self, model: Any, batch: Batch, train: bool) -> tuple:
        hidden = model(batch, train=train)
        logits = model.head("classify", hidden, train=train)
        return logits, batch["labels"], batch["label_weights"]

    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms:
        output = self._output(model, batch, train)
        return {"classify": losses.cross_entropy(*output)}

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"classify": batch["label_weights"].sum()}

    def metrics(self, model: Any, batch: Batch) -> Terms:
        output = self._output(model, batch, False)
        return {
            "classify_loss": losses.cross_entropy(*output),
            "classify_accuracy": losses.correct(*output),
        }

    def predict(self, model: Any, batch: Batch) -> dict[str, Any]:
        """`probabilities` (B, classes)."""
        logits = self._output(model, batch, False)[0]
        return {"probabilities": jax.nn.softmax(logits)}


@dataclasses.dataclass(frozen=True)
class Label:
    """The row's label, with weight 1."""

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        labels = {"labels": np.int32(example["labels"])}
        return example | labels | {"label_weights": np.float32(1)}
