"""What a model says itself: translations and summaries by their references, samples."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from lm.decoding.loop import Settings
from lm.errors import ConfigError
from lm.evaluators import base
from lm.host import storage
from lm.metrics.text import METRICS

BOUNDS = {
    "max_tokens": "[1, 1048576]",
    "beams": "[1, 1024]",
    "length_penalty": "(-inf, inf)",
    "temperature": "[0, inf)",
    "rows": "[0, 1000]",
}


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Metrics of lm.metrics.text of what the model says about each source of the set.

    Only for objectives with references (seq2seq), and unpacked data. Without `metrics`
    it is for any decoder: what it says after `prompts` is written to `samples/`.

    Attributes:
      metrics: their names.
      prompts: texts to continue, as samples, beside the set's own.
      max_tokens, beams, length_penalty, temperature: see lm.decoding.loop.Settings.
      rows: how many answers are written to the samples; hypotheses of the whole set
        are written in any case, one in a line.
    """

    metrics: tuple[Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL"], ...] = ()
    prompts: tuple[str, ...] = ()
    max_tokens: int = 128
    beams: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    rows: int = 8

    def run(self, tools: base.Tools, params: PyTree) -> Iterator[tuple[str, float]]:
        settings = Settings(
            max_tokens=self.max_tokens,
            beams=self.beams,
            length_penalty=self.length_penalty,
            temperature=self.temperature,
            seed=self.seed,
        )
        shown = []
        if self.prompts:
            ids = [tools.prompt(text) for text in self.prompts]
            for text, answers in zip(self.prompts, tools.answer(ids, settings)):
                said = tools.codec.decode(answers[0].ids)
                shown.append(f"prompt: {text}\nsaid: {said}")
        if self.metrics:
            yield from self._score(tools, settings, shown)
        if jax.process_index() == 0:
            storage.write_text(tools.samples, "\n\n".join(shown) + "\n")

    def _score(
        self, tools: base.Tools, settings: Settings, shown: list[str]
    ) -> Iterator[tuple[str, float]]:
        if tools.references is None:
            raise ConfigError(
                "evals.<name>.metrics",
                ", ".join(self.metrics),
                "an objective whose records hold right answers (seq2seq)",
                "leave them out; prompts are continued without",
            )
        references = [tools.references(record) for record in tools.records()]
        sources = [source_of(tools.stream.example(n)) for n in range(tools.rows)]
        answers = tools.answer(sources, settings)
        said = [tools.codec.decode(best.ids) for best, *_ in answers]
        for number in range(min(self.rows, len(said))):
            parts = {
                "source": tools.codec.decode(sources[number]),
                "said": said[number],
            }
            parts |= {"reference": " | ".join(references[number])}
            shown.append("\n".join(f"{name}: {text}" for name, text in parts.items()))
        signatures = []
        for name in self.metrics:
            score, signature = METRICS[name](said, references)
            signatures.append(f"{name} {score:.2f} ({signature})")
            yield name, score
        how = f"beams {self.beams}, length penalty {self.length_penalty}"
        shown.insert(0, "\n".join(signatures))
        if jax.process_index() == 0:
            lines = [text.replace("\n", " ") for text in said]
            hypotheses = tools.samples.with_suffix(".hypotheses.txt")
            storage.write_text(hypotheses, "\n".join(lines) + "\n")
            tools.note(f"{tools.samples.stem}: {'; '.join(signatures)}; {how}")


def source_of(example: dict[str, np.ndarray]) -> list[int]:
    """The tokens that the encoder reads in a row of one pair."""
    return example["source_inputs"][example["source_segment_ids"] == 1].tolist()
