"""An evaluation of a run: an evaluator, its set and the functions of the model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import PyTree

from lm.data.scoring import Settings, Text
from lm.decoding import loop
from lm.decoding.text import TextGenerator
from lm.evaluators.base import Evaluator, Examples, Functions, Outputs
from lm.evaluators.likelihood import Score, Scorer
from lm.host import timing
from lm.objectives.base import Batch, Terms

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: (params, step) -> {`<name>/<metric>`: value}.

    Attributes:
      name: the name of the section in config.evals.
      evaluator: computes the metrics.
      examples: the set.
      batch_size: rows of a batch, over all devices.
      metrics, by_row, predict: begin a pass over the set: params -> a function of a
        batch; see `Functions`.
      scorer: params -> what scores texts.
      embed_texts: params -> a function of texts; see `Functions`.
      embed: (params, ids) -> the vectors of words; see `Functions`.
      module: the model.
      decoder: builds the run's decoder; the evaluations share one.
      workdir: samples are written to its folder `samples`.
      note: writes a line to the log.
    """

    name: str
    evaluator: Evaluator
    examples: Examples
    batch_size: int
    metrics: Callable[[PyTree], Callable[[Batch], Terms]]
    by_row: Callable[[PyTree], Callable[[Batch], tuple[Terms, Terms]]]
    predict: Callable[[PyTree], Callable[[Batch], tuple[Batch, dict[str, Any]]]]
    scorer: Callable[[PyTree], Scorer]
    embed_texts: Callable[[PyTree], Callable[[Sequence[str]], np.ndarray]]
    embed: Callable[[PyTree, Any], Any]
    module: Any
    decoder: Callable[[], loop.Decoder]
    workdir: Path
    note: Callable[[str], None]

    def __call__(self, params: PyTree, step: int) -> dict[str, float]:
        # Only evaluators that generate text need the decoder's copy of the weights.
        decoder = functools.cache(lambda: loop.with_params(self.decoder(), params))

        def report(numbers: Sequence[int]) -> Iterator[int]:
            return progress(numbers, len(numbers), self.name, self.note)

        def answer(prompts: Sequence[Any], settings: loop.Settings) -> list:
            size = self.batch_size
            return loop.answer_all(
                decoder(), prompts, settings, batch_size=size, progress=report
            )

        def write(
            prompts: Sequence[Text], settings: loop.Settings, stop: Sequence[str]
        ) -> list[str]:
            own, codec = self.examples.objective, self.examples.codec
            writer = TextGenerator(decoder(), settings, tuple(stop), self.batch_size)
            ids = [own.prompt(codec, prompt.text) for prompt in prompts]
            fitted = [
                writer.fit_prompt(each, prompt.where, truncate=True)
                for each, prompt in zip(ids, prompts)
            ]
            if cut := sum(len(new) < len(old) for new, old in zip(fitted, ids)):
                self.note(f"{self.name}: prompts too long, cut: {cut}")
            return writer.answer_all(fitted, report)

        def score(texts: Sequence[Text], settings: Settings) -> list[Score]:
            own = self.examples.objective  # with the changes of this evaluation
            return dataclasses.replace(self.scorer(params), objective=own)(
                texts, settings
            )

        model = Functions(
            metrics=self.metrics(params),
            by_row=self.by_row(params),
            predict=self.predict(params),
            answer=answer,
            write=write,
            score=score,
            embed_texts=lambda texts: self.embed_texts(params)(texts),
            embed=functools.partial(self.embed, params),
            module=self.module,
            params=params,
        )
        samples = self.workdir / "samples" / f"{self.name}-{step}.txt"
        out = Outputs(samples, self.note)
        found = self.evaluator.run(self.examples, model, out)
        return {f"{self.name}/{metric}": value for metric, value in found}


def progress(
    items: Iterable[T], total: int, name: str, note: Callable[[str], None]
) -> Iterator[T]:
    """Yields the items of an evaluation, and logs its progress now and then."""
    return timing.with_progress(
        items, total, lambda text: note(f"{name}: batch {text}")
    )
