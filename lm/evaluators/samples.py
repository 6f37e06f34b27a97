"""A few rows as text, with what the model makes of them: for the eye, no number."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from lm.evaluators import base
from lm.host import storage

BOUNDS = {"rows": "[1, 1000]"}


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Writes the first `rows` rows of the set to `samples/` in the workdir."""

    rows: int = 4

    def run(self, tools: base.Tools, params: PyTree) -> Iterator[tuple[str, float]]:
        batch = next(iter(tools.batches()))
        found = tools.predict(params, batch)
        batch, predictions = jax.tree.map(np.asarray, found)
        rows = min(self.rows, tools.rows, len(batch["inputs"]))
        lines = [
            tools.show(batch, predictions, tools.codec, row) for row in range(rows)
        ]
        if jax.process_index() == 0:
            storage.write_text(tools.samples, "\n\n".join(lines) + "\n")
        yield from ()
