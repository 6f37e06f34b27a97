"""An evaluation of a run: an evaluator with its set and the model's functions."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import PyTree

from lm.decoding import loop
from lm.evaluators.base import Evaluator, Examples, Functions, Outputs
from lm.host import timing
from lm.objectives.base import Batch, Terms

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: (params, step) -> its metrics, as `<name>/<metric>`.

    Attributes:
      name: of the section in config.evals.
      evaluator: what is computed.
      examples: the set.
      batch_size: rows of a batch, over all devices.
      metrics, predict: of (params, batch); see `Functions`.
      decoder: makes the run's decoder, once for all evaluations.
      workdir: where samples are written.
      note: writes a line to the log.
    """

    name: str
    evaluator: Evaluator
    examples: Examples
    batch_size: int
    metrics: Callable[[PyTree, Batch], Terms]
    predict: Callable[[PyTree, Batch], tuple[Batch, dict[str, Any]]]
    decoder: Callable[[], loop.Decoder]
    workdir: Path
    note: Callable[[str], None]

    def __call__(self, params: PyTree, at: int) -> dict[str, float]:
        decoder = functools.cache(lambda: loop.with_params(self.decoder(), params))

        def report(numbers: Sequence[int]) -> Iterator[int]:
            return progress(numbers, len(numbers), self.name, self.note)

        def answer(prompts: Sequence[Any], settings: loop.Settings) -> list:
            size = self.batch_size
            return loop.answer_all(
                decoder(), prompts, settings, batch_size=size, progress=report
            )

        model = Functions(
            metrics=functools.partial(self.metrics, params),
            predict=functools.partial(self.predict, params),
            answer=answer,
        )
        samples = self.workdir / "samples" / f"{self.name}-{at}.txt"
        out = Outputs(samples, self.note)
        found = self.evaluator.run(self.examples, model, out)
        return {f"{self.name}/{metric}": value for metric, value in found}


def progress(
    items: Iterable[T], total: int, name: str, note: Callable[[str], None]
) -> Iterator[T]:
    """Yields the items of an evaluation, and notes now and then how far it is."""
    return timing.told(items, total, lambda text: note(f"{name}: batch {text}"))
