"""Scores generated texts by their references, and writes samples."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from lm.decoding.loop import Settings
from lm.errors import Rule
from lm.evaluators import base
from lm.host import storage
from lm.metrics import statistics, text
from lm.metrics.words import PACKAGES, choose
from lm.objectives.base import Objective

BOUNDS = {
    "max_tokens": "[1, 1048576]",
    "beams": "[1, 1024]",
    "length_penalty": "(-inf, inf)",
    "temperature": "[0, inf)",
    "rows": "[0, 1000]",
    "level": "(0, 1)",
    "resamples": "[0, 100000]",
}
WORDS = {"metrics": "metrics.text:*"}
CHANGEABLE = ("tokenize", "stem", "level", "resamples")


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Metrics of the texts that the model generates for the examples of a set.

    Metrics require an objective with references (seq2seq) and unpacked data. A metric
    is followed by `<metric>_low` and `<metric>_high`, the bootstrap interval over the
    examples. Without `metrics` any decoder will do: the answers to `prompts` are
    written to `samples/`. Tasks as files, for any decoder, are for `answers`.

    Attributes:
      metrics: names of public functions of lm/metrics/text.py.
      tokenize: the tokenizer of sacrebleu that splits texts into words for BLEU and
        ROUGE; "auto" chooses by the script of the references (lm/metrics/words.py).
        The log shows the choice in the signature of the score.
      stem: whether ROUGE compares English stems; "auto" does in Latin script.
      prompts: texts to continue or answer as samples, beside those of the set.
      max_tokens, beams, length_penalty, temperature: see lm.decoding.loop.Settings.
      rows: the number of answers in the samples. The hypotheses of the whole set are
        written in any case, one per line.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
    """

    metrics: tuple[str, ...] = ()
    tokenize: Literal[
        "auto", "13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "none"
    ] = "auto"
    stem: Literal["auto", "porter", "none"] = "auto"
    prompts: tuple[str, ...] = ()
    max_tokens: int = 128
    beams: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    rows: int = 8
    level: float = 0.95
    resamples: int = 1000

    @property
    def needs(self) -> frozenset[str]:
        scored = {"references"} if self.metrics else set()
        return frozenset({"extend"} | scored | ({"prompt"} if self.prompts else set()))

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        packed = self.metrics and self.data.get("pack")
        fix = f"set {where}.data.pack=false."
        expected = "false: only a row of one record has references"
        yield Rule(not packed, f"{where}.data.pack", "true", expected, fix)
        package = PACKAGES.get(self.tokenize)
        yield Rule(
            package is None or importlib.util.find_spec(package) is not None,
            f"{where}.tokenize",
            f"{self.tokenize} without the package {package}",
            "a tokenizer that is installed",
            f"install {package}, or set {where}.tokenize=char.",
        )

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = ("", "_low", "_high") if self.resamples else ("",)
        return tuple(name + end for name in self.metrics for end in ends)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        settings = Settings(
            max_tokens=self.max_tokens,
            beams=self.beams,
            length_penalty=self.length_penalty,
            temperature=self.temperature,
            seed=self.seed,
        )
        objective, codec = examples.objective, examples.codec
        shown: list[str] = []
        if self.prompts:
            ids = [objective.prompt(codec, prompt) for prompt in self.prompts]
            for prompt, answers in zip(self.prompts, model.answer(ids, settings)):
                generated = codec.decode(answers[0].ids)
                shown.append(f"prompt: {prompt}\nanswer: {generated}")
        if self.metrics:
            yield from self._score(examples, model, settings, out, shown)
        if jax.process_index() == 0:
            storage.write_text(out.samples, "\n\n".join(shown) + "\n")

    def _score(
        self,
        examples: base.Examples,
        model: base.Functions,
        settings: Settings,
        out: base.Outputs,
        shown: list[str],
    ) -> Iterator[tuple[str, float]]:
        """Generates an answer to each example, and yields the scores of all.

        Args:
          shown: the parts of the file of samples; the signatures and the first answers
            are added.
        """
        objective, decode = examples.objective, examples.codec.decode
        references = [objective.references(record) for record in examples.records()]
        numbers = range(examples.rows)
        questions = [objective.prompt_of(examples.stream.example(n)) for n in numbers]
        answers = model.answer(questions, settings)
        generated = [decode(best.ids) for best, *_ in answers]
        for number in range(min(self.rows, len(generated))):
            parts = {
                "source": decode(questions[number]),
                "answer": generated[number],
                "reference": " | ".join(references[number]),
            }
            shown.append("\n".join(f"{name}: {line}" for name, line in parts.items()))
        words = choose(self.tokenize, self.stem, references)
        signatures = []
        for name in self.metrics:
            score: text.Score = getattr(text, name)(generated, references, words)
            value, ends = score.value, ""
            yield name, value
            if self.resamples:
                interval = self._interval(score)
                yield from interval.named(name)
                ends = f", {interval.low:.2f} to {interval.high:.2f}"
            signatures.append(f"{name} {value:.2f}{ends} ({score.signature})")
        how = f"beams {self.beams}, length penalty {self.length_penalty}"
        shown.insert(0, "\n".join(signatures))
        if jax.process_index() == 0:
            lines = [line.replace("\n", " ") for line in generated]
            hypotheses = out.samples.with_suffix(".hypotheses.txt")
            storage.write_text(hypotheses, "\n".join(lines) + "\n")
            out.note(f"{out.samples.stem}: {'; '.join(signatures)}; {how}")

    def _interval(self, score: text.Score) -> statistics.Interval:
        """Computes the bootstrap interval of a score over the examples."""
        drawn = statistics.draw(score.parts, self.resamples, self.seed)
        values = np.asarray([score.measure(sums) for sums in drawn])
        return statistics.percentiles(values, self.level)
