"""Dynamic evaluation: the parameters follow the text that is read (Krause et al. 2018).

Dynamic evaluation of neural sequence models, sections 4 and 5.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lm.errors import Rule
from lm.evaluators import base, streams
from lm.objectives.base import Batch, Objective

BOUNDS = {
    "lr": "[0, inf)",
    "decay": "[0, 1]",
    "epsilon": "(0, inf)",
    "batches": "[1, 1048576]",
}


@dataclasses.dataclass(frozen=True)
class Evaluator(streams.StreamEvaluator):
    """The perplexity of a model that is updated on each segment after it is scored.

    A segment is a row, of `seq_len` tokens, and the batch size must be 1, so that the
    text is read in order. With g the gradient of a segment's mean loss, p the
    parameters and p0 those of the checkpoint, an update is

        sgd   p <- p - lr g + decay (p0 - p)
        rms   p <- p - lr g / (r + epsilon) + min(decay r / mean(r), 1) (p0 - p)

    where r is the root of the mean square of g over segments of the training text, and
    mean(r) is over all parameters. The run's parameters are left as they are.

    Yields `perplexity`, `loss` (nats) and `targets`, and the intervals of the first two
    over segments.

    Attributes:
      rule: the update.
      lr, decay, epsilon: of the update.
      batches: segments of the training text for r, from its beginning.
    """

    batch_size: int | None = 1
    rule: Literal["sgd", "rms"] = "rms"
    lr: float = 0.002
    decay: float = 0.02
    epsilon: float = 1e-3
    batches: int = 100

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        yield from super().rules(config, where)
        found, expected = self.batch_size, "1: the text is read in order"
        yield Rule(self.batch_size == 1, f"{where}.batch_size", found, expected)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        names = ("loss", "perplexity", "targets")
        return names + (streams.ENDS if self.resamples else ())

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        gradient, step = self._compiled(model.module, examples.objective)
        carried = streams.start(model.module, 1)
        roots = None
        if self.rule == "rms":
            roots = self._roots(examples, model.params, carried, gradient)
        params, parts = model.params, []
        for batch in examples.batches():
            params, carried, found = step(params, carried, batch, model.params, roots)
            parts.append([float(part) for part in found])
        total, count = map(sum, zip(*parts))
        mean = total / max(count, 1.0)
        yield "loss", mean
        yield "perplexity", math.exp(min(mean, 700.0))
        yield "targets", count
        yield from self.bounds(np.asarray(parts))

    def _roots(
        self, examples: base.Examples, params: PyTree, carried: PyTree, gradient: Any
    ) -> PyTree:
        """Returns the roots of the mean squares of the training text's gradients."""
        rows, squares = examples.train(), jax.tree.map(jnp.zeros_like, params)
        count = min(self.batches, len(rows))

        @jax.jit
        def add(squares: PyTree, batch: Batch) -> PyTree:
            _, grads = gradient(params, carried, batch)
            return jax.tree.map(lambda s, g: s + g * g, squares, grads)

        for n in range(count):
            example = rows.example(n)
            names = [name for name in example if name != "example_ids"]
            squares = add(squares, {name: example[name][None] for name in names})
        return jax.tree.map(lambda s: jnp.sqrt(s / count), squares)

    @functools.cached_property
    def _functions(self) -> dict[int, tuple[Callable, Callable]]:
        return {}

    def _compiled(self, module: Any, objective: Any) -> tuple[Callable, Callable]:
        """Returns the gradient of a segment, and its scoring and update, compiled."""

        def loss(params: PyTree, carried: PyTree, batch: Batch) -> tuple:
            def nats(module: Any, batch: Batch) -> Array:
                return -objective.score(module, batch)[0]

            found, carried = streams.apply(module, params, carried, batch, nats)
            weights = batch["weights"]
            total = jnp.sum(jnp.where(weights > 0, found * weights, 0.0))
            count = weights.sum()
            return total / jnp.maximum(count, 1.0), ((total, count), carried)

        gradient = jax.value_and_grad(loss, has_aux=True)

        def step(
            params: PyTree, carried: PyTree, batch: Batch, first: PyTree, roots: PyTree
        ) -> tuple:
            (_, (found, carried)), grads = gradient(params, carried, batch)
            return self.update(params, grads, first, roots), carried, found

        if id(module) not in self._functions:
            self._functions[id(module)] = jax.jit(gradient), jax.jit(step)
        return self._functions[id(module)]

    def update(
        self, params: PyTree, grads: PyTree, first: PyTree, roots: PyTree
    ) -> PyTree:
        """Returns the parameters after a segment.

        Args:
          first: the parameters of the checkpoint.
          roots: r of the rule "rms"; None for "sgd".
        """
        if roots is None:
            return jax.tree.map(
                lambda p, g, p0: p - self.lr * g + self.decay * (p0 - p),
                *(params, grads, first),
            )
        sizes = sum(leaf.size for leaf in jax.tree.leaves(roots))
        mean = sum(leaf.sum() for leaf in jax.tree.leaves(roots)) / sizes

        def move(p: Array, g: Array, p0: Array, r: Array) -> Array:
            back = jnp.minimum(self.decay * r / jnp.maximum(mean, 1e-30), 1.0)
            return p - self.lr * g / (r + self.epsilon) + back * (p0 - p)

        return jax.tree.map(move, params, grads, first, roots)
