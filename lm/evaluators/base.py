"""The contract of an evaluator, and the three records that it receives."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lm.config.resolve import Duration
from lm.data import scoring
from lm.data.scoring import Text
from lm.data.sources.base import Record
from lm.data.stream import Stream
from lm.decoding.loop import Answer, Settings
from lm.errors import Rule
from lm.evaluators.likelihood import Score
from lm.objectives.base import Batch, Objective, Terms
from lm.tokenizers.base import Codec

BOUNDS = {"batch_size": "[1, 1048576]", "limit": "[1, inf)", "seed": "[0, 4294967295]"}
CHANGEABLE = ("every", "batch_size")


@dataclasses.dataclass(frozen=True)
class Examples:
    """An evaluation set.

    Attributes:
      stream: returns an example by its number.
      rows: the number of examples to evaluate; `batches` adds padding rows.
      batches: begins a pass over the set; the batches are on the devices. With
        `by_length=True` their rows are in another order, sorted by length, and less of
        them is padding.
      records: begins a pass over the records of the rows, in the same order.
      objective: the run's objective with the changes of this evaluation.
      codec: the tokenizer.
      train_counts: returns how often each token occurs in the training rows, (V,).
      train_texts: begins a pass over the texts of the training records.
      train: returns the stream of the training rows, for plain baselines.
      memo: what an evaluator keeps from one step to the next.
    """

    stream: Stream
    rows: int
    batches: Callable[..., Iterator[Batch]]
    records: Callable[[], Iterator[Record]]
    objective: Objective
    codec: Codec
    train_counts: Callable[[], np.ndarray]
    train_texts: Callable[[], Iterator[str]]
    train: Callable[[], Stream]
    memo: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def target_counts(self) -> np.ndarray:
        """The sum of the weights of each token as a target, (V,).

        It is the same at every step, since the targets are. For objectives that offer
        "tokens".
        """
        counts = np.zeros(len(self.train_counts()))
        for n in range(self.stream.evaluated(self.rows)):
            example = self.stream.example(n)
            np.add.at(counts, example["targets"], example["weights"])
        return counts

    @property
    def next_place(self) -> tuple[int, int] | None:
        """Source and record of the first row that is not evaluated, if any."""
        if self.rows >= len(self.stream):
            return None
        source, _, at = self.stream.locate(self.rows)
        return source, int(self.stream.indices[source].fields["record"][at])


@dataclasses.dataclass(frozen=True)
class Functions:
    """The functions of a model, with the parameters to evaluate already bound.

    Where the set is a stream (data.order="stream") and the model carries its state,
    `metrics`, `by_row` and `predict` keep it from call to call: the batches must come
    in order.

    Attributes:
      metrics: batch -> {metric: (sum, count)}.
      by_row: batch -> the same, and {metric: (sums (B,), counts (B,))} of its rows.
      predict: batch -> (batch, predictions), as complete arrays on every process.
      answer: (prompts as token ids, settings) -> generated answers per prompt, the best
        first.
      write: (prompts, settings, stop) -> the best answer to each as text, up to the
        first of the texts in `stop`; of a prompt that is too long, the left end is cut,
        or of a source the right one.
      score: (texts, settings) -> the log-probabilities of their tokens.
      embed_texts: texts -> their vectors (N, D), of an objective that offers
        "embeddings".
      embed: the ids that `Objective.spell` gives for words, (W, K) -> vectors (W, D).
      module, params: the model and its parameters, for what none of these gives.
    """

    metrics: Callable[[Batch], Terms]
    by_row: Callable[[Batch], tuple[Terms, Terms]]
    predict: Callable[[Batch], tuple[Batch, dict[str, Any]]]
    answer: Callable[[Sequence[Sequence[int]], Settings], list[list[Answer]]]
    write: Callable[[Sequence[Text], Settings, Sequence[str]], list[str]]
    score: Callable[[Sequence[Text], scoring.Settings], list[Score]]
    embed_texts: Callable[[Sequence[str]], np.ndarray]
    embed: Callable[[Any], Any]
    module: Any
    params: PyTree


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where an evaluator writes texts and messages.

    Attributes:
      samples: the file for texts; only process 0 writes it.
      note: writes a line to the log.
    """

    samples: Path
    note: Callable[[str], None]

    @property
    def predictions(self) -> Path:
        """The file for the predictions of this evaluation at this step."""
        folder = self.samples.parent.parent / "predictions"
        return folder / f"{self.samples.stem}.jsonl"


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The base of every evaluator; its fields are `config.evals.<name>`.

    Attributes:
      data: the sources, like config.data.
      objective: fields of the run's objective that differ here.
      every: how often it runs; it runs once more at the end.
      batch_size: None is that of training.
      limit: the number of examples to use, from the beginning; None is all.
      seed: for the masks and samples of an evaluation, the same at every step.
    """

    data: dict = dataclasses.field(default_factory=dict)
    objective: dict = dataclasses.field(default_factory=dict)
    every: Duration = "10%"
    batch_size: int | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Lists the abilities that the model or the objective must offer.

        They are words of `can` in lm/models/base.py and lm/objectives/base.py, and are
        checked before step 1.
        """
        return frozenset()

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        """Yields the conditions on its own fields.

        Args:
          config: the complete config.
          where: the path of this evaluator's section, such as "evals.dev".
        """
        yield from ()

    def yields(self, objective: Objective) -> tuple[str, ...] | None:
        """Returns the names that `run` may yield; None if they are not known before.

        `checkpoint.best` and `stop.metric` are checked against them before step 1.
        """
        return None

    def run(
        self, examples: Examples, model: Functions, out: Outputs
    ) -> Iterator[tuple[str, float]]:
        """Yields (metric, value) for the set.

        An undefined value is NaN, and `out.note` logs the reason.
        """
        raise NotImplementedError(f"{type(self).__module__} has no method run")
