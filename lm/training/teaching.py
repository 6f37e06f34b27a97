"""A teacher in the update of a student: options, loss terms, learned projections.

The student's loss on a term with logits becomes (1 - alpha) hard + alpha T^2 KL
(Hinton et al. 2015, section 2); a loss of hidden states is added where it is asked for.
The teacher's parameters are a part of the state that no update changes. Where they come
from is in lm/distilled.py.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lm.errors import ConfigError
from lm.ops import distillation, losses
from lm.training.criterion import applied
from lm.training.step import DISTIL
from lm.updates.base import Rows

BOUNDS = {
    "temperature": "(0, 1000]",
    "alpha": "[0, 1]",
    "hidden": "[0, inf)",
    "layers": "[0, 4096]",
}
CHANGEABLE = ("source", "checkpoint")
OF = ("logits", "hidden")  # what a student may be compared by
LAYERS = "intermediates"  # the collection of a model with "layers"


@dataclass(frozen=True)
class Teacher:
    """The section `teacher` of a config: from what a run learns beside its data.

    Attributes:
      source: the workdir of a finished run, or a directory of Hugging Face, "hf:DIR";
        None: no teacher. Its tokenizer and the form of its rows must be the student's;
        a config without a tokenizer takes the teacher's. It may be moved: what counts
        is the hash of its weights.
      checkpoint: of a run: its step, "latest" or "best".
      of: what is compared: "logits", for each target of the objective, and "hidden",
        the states of the last layer, or of `layers`, at each token.
      temperature: T, by which the logits of both are divided.
      alpha: the share of the teacher in the loss of each term with logits.
      hidden: the factor of the loss of states.
      match: that loss: the mean squared error, or 1 - cosine (Sanh et al. 2019). Where
        the widths differ, a learned projection maps the student's states first (Jiao et
        al. 2020, equation 8), one for each pair of layers.
      layers: (layer of the student, layer of the teacher) to compare, counted from 1; 0
        are the embeddings. The losses of the pairs are added up.
    """

    source: str | None = None
    checkpoint: int | Literal["latest", "best"] = "latest"
    of: tuple[str, ...] = ("logits",)
    temperature: float = 2.0
    alpha: float = 0.5
    hidden: float = 1.0
    match: Literal["mse", "cosine"] = "mse"
    layers: tuple[tuple[int, int], ...] = ()


class Side(NamedTuple):
    """What one of the two computes for a batch.

    Attributes:
      hidden: the states to compare, a (B, T, D) for each pair of layers.
      soft: the logits to compare, by term.
      terms: of the loss.
      carried: the state carried on.
    """

    hidden: tuple[Array, ...]
    soft: dict[str, distillation.Soft]
    terms: dict[str, tuple[Array, Array]]
    carried: PyTree


class Reader(NamedTuple):
    """How one of the two is asked.

    Attributes:
      model: the module.
      objective: whose `lesson` is asked for; None: the states alone.
      layers: which states are compared; () is the last.
    """

    model: Any
    objective: Any
    layers: tuple[int, ...]

    def __call__(
        self, params: PyTree, rows: Rows, train: bool, **keywords: Any
    ) -> Side:
        """Applies the model; keywords are of its `apply`."""

        def ask(model: Any, batch: Any) -> tuple[Array, dict, dict]:
            if self.objective is None:
                return model(batch, train=train), {}, {}
            found = self.objective.lesson(model, batch, train=train)
            return found.hidden, found.soft, found.terms

        keep = (LAYERS,) if self.layers else ()
        found, left = applied(self.model, params, rows, ask, keep, **keywords)
        hidden, soft, terms = found
        states = (hidden,)
        if self.layers:
            every = self.model.layer_states(left)
            if max(self.layers) >= len(every):
                found = f"layer {max(self.layers)} of a model of {len(every) - 1}"
                raise ConfigError("teacher.layers", found, "layers that both have")
            states = tuple(every[layer] for layer in self.layers)
        return Side(states, soft, terms, left.get("carry", {}))


@dataclass(frozen=True)
class Teaching:
    """The loss of a student beside its teacher: a criterion (lm/training/criterion.py).

    Attributes:
      options: of the config.
      own, theirs: the student and the teacher.
      params: the teacher's parameters: shapes, types and shardings.
      soft: the terms whose logits are compared.
      widths: (student's, teacher's) width of the states of each pair that is compared.
    """

    options: Teacher
    own: Reader
    theirs: Reader
    params: PyTree
    soft: tuple[str, ...]
    widths: tuple[tuple[int, int], ...]

    def start(self, key: Array) -> PyTree:
        """Makes the projections of states, DISTIL/<pair>/kernel; {} without any."""
        made = {
            str(pair): {
                "kernel": jax.random.normal(jax.random.fold_in(key, pair), (own, other))
                * own**-0.5
            }
            for pair, (own, other) in enumerate(self.widths)
            if own != other
        }
        return {DISTIL: made} if made else {}

    @property
    def model(self) -> Any:
        """Returns the student's module."""
        return self.own.model

    def of(self, model: Any) -> "Teaching":
        """Returns the same loss for another module of the student's parameters."""
        return replace(self, own=self.own._replace(model=model))

    def counts(self, batch: Any) -> dict[str, Array]:
        """Counts what the terms of the objective and of the teacher are means over."""
        counts = self.own.objective.counts(batch)
        more = {f"{term}_soft": counts[term] for term in self.soft}
        if self.widths:
            more["hidden"] = _real(batch).sum()
        return counts | more

    def terms(
        self, params: PyTree, still: PyTree, rows: Rows, rngs: dict[str, Array]
    ) -> tuple[dict[str, tuple[Array, Array]], PyTree]:
        """Returns the terms of both, as (sum, count), and the state carried on.

        Args:
          params: the student's, with its projections.
          still: the teacher's.
          rngs: for the student; the teacher has no dropout.
        """
        kernels = params.get(DISTIL, {})
        own = self.own(model_alone(params), rows, True, rngs=rngs)
        theirs = self.theirs(still, Rows(rows.batch, {}), False)
        terms = dict(own.terms)
        for term in self.soft:
            pair = own.soft[term], theirs.soft[term]
            terms[f"{term}_soft"] = distillation.soft_loss(
                *pair, self.options.temperature
            )
        if self.widths:
            each = [
                distillation.state_loss(
                    *states,
                    kernels[str(pair)]["kernel"] if str(pair) in kernels else None,
                    self.options.match,
                )
                for pair, states in enumerate(zip(own.hidden, theirs.hidden))
            ]
            total = jnp.sum(jnp.stack(each), axis=0)
            terms["hidden"] = losses.weighted(total, _real(rows.batch))
        return terms, own.carried

    def total(self, means: dict[str, Array]) -> Array:
        """Adds up the means of the terms, each with its factor."""
        options = self.options
        factors = dict.fromkeys(self.soft, 1.0 - options.alpha)
        factors |= {f"{term}_soft": options.alpha for term in self.soft}
        factors |= {"hidden": options.hidden} if self.widths else {}
        return jnp.asarray(sum(factors.get(n, 1.0) * x for n, x in means.items()))


def model_alone(params: PyTree) -> PyTree:
    """Returns the parameters without the projections."""
    return {key: part for key, part in params.items() if key != DISTIL}


def _real(batch: Any) -> Array:
    return (batch["segment_ids"] != 0).astype(jnp.float32)


def look(
    read: Reader, params: PyTree, batch: PyTree, train: bool
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Returns the widths of the states and of each term's logits, computing nothing.

    Args:
      params, batch: shapes and types.
    """

    def ask(params: PyTree, batch: PyTree) -> tuple[tuple, dict]:
        keys = {name: jax.random.key(0) for name in ("dropout", "sample")}
        side = read(params, Rows(batch, {}), train, rngs=keys if train else {})
        logits = {term: soft.logits(soft.states) for term, soft in side.soft.items()}
        return side.hidden, logits

    hidden, logits = jax.eval_shape(ask, params, batch)
    widths = tuple(states.shape[-1] for states in hidden)
    return widths, {term: array.shape[-1] for term, array in logits.items()}
