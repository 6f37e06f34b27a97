"""Writes a few rows as text with the model's predictions; yields no metric."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from lm.evaluators import base
from lm.host import storage
from lm.objectives.base import Objective

BOUNDS = {"rows": "[1, 1000]"}


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Writes the first `rows` rows of the set to `samples/` in the workdir.

    Attributes:
      rows: at most those of one batch are written.
    """

    rows: int = 4

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"show"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        return ()

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        found = model.predict(next(iter(examples.batches())))
        batch, predictions = jax.tree.map(np.asarray, found)
        rows = min(self.rows, examples.rows, len(batch["inputs"]))
        show = examples.objective.show
        lines = [show(batch, predictions, examples.codec, row) for row in range(rows)]
        if jax.process_index() == 0:
            storage.write_text(out.samples, "\n\n".join(lines) + "\n")
        yield from ()
