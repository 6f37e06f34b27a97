"""Kinds of labels: one class of several, any number of classes, or a number.

Each kind says what its head puts out, the loss of a row, and how a prediction reads.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.data import labels
from lm.ops import losses

Name = Callable[[int], str]
Logits = Float[Array, "B C"]
Losses = Float[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The fields of an objective that a kind of labels needs.

    Attributes: see `lm.objectives.classification.Objective`.
    """

    column: str
    names: tuple[str, ...]
    classes: int
    separator: str
    between: tuple[float, ...]
    scale: float
    label_smoothing: float
    focal: float

    def class_name(self, number: int) -> str:
        """Returns the label of a class; its number where it has none."""
        return self.names[number] if number < len(self.names) else str(number)


@dataclasses.dataclass(frozen=True)
class Kind(abc.ABC):
    """The base of the kinds."""

    options: Options

    @property
    def outputs(self) -> int:
        """How many numbers the head puts out."""
        return self.options.classes

    @abc.abstractmethod
    def labels(self) -> labels.Labels:
        """Returns how a label is read."""

    @abc.abstractmethod
    def losses(self, logits: Logits, targets: Array, *, train: bool) -> Losses:
        """Computes the loss of each row, in training with smoothing and the like."""

    @abc.abstractmethod
    def measures(self, logits: Logits, targets: Array) -> dict[str, Losses]:
        """Computes what is averaged beside the loss, for each row."""

    @abc.abstractmethod
    def predict(self, logits: Logits) -> dict[str, Array]:
        """Returns the predictions by name; `logits` are among them."""

    @property
    @abc.abstractmethod
    def says(self) -> Mapping[str, tuple[str, ...]]:
        """See `lm.objectives.base.Objective.says`."""

    @abc.abstractmethod
    def name(self, target: np.ndarray | np.generic) -> Any:
        """Returns the label of a target, as JSON."""

    @abc.abstractmethod
    def answer(self, predictions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Returns the fields of `says`; the logits of several rows are averaged."""

    def logits(
        self, predictions: Sequence[Mapping[str, np.ndarray]]
    ) -> Float[np.ndarray, "C"]:
        """Returns the mean of the logits of several rows, float32."""
        return np.mean([np.asarray(each["logits"]) for each in predictions], axis=0)

    def named(self, values: Float[np.ndarray, "C"]) -> dict[str, float]:
        """Returns values by the names of the classes, in few digits."""
        name = self.options.class_name
        return {name(n): shortest(value) for n, value in enumerate(values)}


class Softmax(Kind):
    """One class of several, by softmax."""

    def labels(self) -> labels.Class:
        return labels.Class(
            self.options.column, self.options.names, self.options.classes
        )

    def losses(self, logits: Logits, targets: Array, *, train: bool) -> Losses:
        smoothing = self.options.label_smoothing if train else 0.0
        each = losses.token_losses(logits, targets, label_smoothing=smoothing)
        return losses.focal(each, self.options.focal) if train else each

    def measures(
        self,
        logits: Logits,
        targets: Int[Array, "B"],
    ) -> dict[str, Losses]:
        hits = jnp.argmax(logits, axis=-1) == targets
        return {"accuracy": hits.astype(jnp.float32)}

    def predict(self, logits: Logits) -> dict[str, Array]:
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    def name(self, target: np.ndarray | np.generic) -> str:
        return self.options.class_name(int(target))

    says = {  # noqa: RUF012 (never changed)
        "probabilities": ("label", "probabilities"),
        "labels": ("label",),
        "logits": ("label", "logits"),
    }

    def answer(self, predictions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        logits = self.logits(predictions)
        if len(predictions) == 1:  # The model's own, to the last bit.
            probabilities = np.asarray(predictions[0]["probabilities"])
        else:
            powers = np.exp(logits - logits.max())
            probabilities = powers / powers.sum()
        return {
            "label": self.options.class_name(int(logits.argmax())),
            "probabilities": self.named(probabilities),
            "logits": self.named(logits),
        }


class Sigmoid(Kind):
    """Any number of classes at once, each by a sigmoid."""

    def labels(self) -> labels.Several:
        one = labels.Class(
            self.options.column, self.options.names, self.options.classes
        )
        return labels.Several(one, self.options.separator)

    def losses(self, logits: Logits, targets: Array, *, train: bool) -> Losses:
        share = self.options.label_smoothing if train else 0.0
        each = losses.binary_cross_entropy(logits, (1 - share) * targets + share / 2)
        return (losses.focal(each, self.options.focal) if train else each).mean(-1)

    def measures(self, logits: Logits, targets: Array) -> dict[str, Losses]:
        hits = (logits > 0) == (targets > 0.5)
        return {
            "accuracy": hits.mean(-1, dtype=jnp.float32),
            "exact": hits.all(-1).astype(jnp.float32),
        }

    def predict(self, logits: Logits) -> dict[str, Array]:
        return {"logits": logits, "probabilities": jax.nn.sigmoid(logits)}

    def name(self, target: np.ndarray | np.generic) -> list[str]:
        return [self.options.class_name(n) for n in np.flatnonzero(target).tolist()]

    says = {  # noqa: RUF012 (never changed)
        "probabilities": ("labels", "probabilities"),
        "labels": ("labels",),
        "logits": ("labels", "logits"),
    }

    def answer(self, predictions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        logits = self.logits(predictions)
        if len(predictions) == 1:
            probabilities = np.asarray(predictions[0]["probabilities"])
        else:
            probabilities = 1 / (1 + np.exp(-logits))
        chosen = np.flatnonzero(logits > 0).tolist()
        return {
            "labels": [self.options.class_name(n) for n in chosen],
            "probabilities": self.named(probabilities),
            "logits": self.named(logits),
        }


class Regression(Kind):
    """A number: the output times `scale`, by the squared error of the output."""

    @property
    def outputs(self) -> int:
        return 1

    def labels(self) -> labels.Number:
        return labels.Number(self.options.column, self.options.between)

    def losses(self, logits: Logits, targets: Array, *, train: bool) -> Losses:
        return jnp.square(logits[:, 0] - targets / self.options.scale)

    def measures(self, logits: Logits, targets: Array) -> dict[str, Losses]:
        return {"mae": jnp.abs(logits[:, 0] * self.options.scale - targets)}

    def predict(self, logits: Logits) -> dict[str, Array]:
        return {"logits": logits, "scores": logits[:, 0] * self.options.scale}

    def name(self, target: np.ndarray | np.generic) -> float:
        return shortest(target)

    says = {"scores": ("score",)}  # noqa: RUF012 (never changed)

    def answer(self, predictions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        scores = [np.asarray(each["scores"]) for each in predictions]
        return {"score": shortest(np.mean(scores, dtype=np.float32))}


KINDS: dict[str, type[Kind]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "regression": Regression,
}


def shortest(value: Any) -> float:
    """Returns a float32 as the float with the fewest digits that reads back as it."""
    return float(str(np.float32(value)))
