"""The contract of an evaluator, and the three records that it works with."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config.resolve import Duration
from lm.data.pipeline import Stream
from lm.data.sources.base import Record
from lm.decoding.loop import Answer, Settings
from lm.errors import Rule
from lm.objectives.base import Batch, Objective, Terms
from lm.tokenizers import Codec

BOUNDS = {"batch_size": "[1, 1048576]", "limit": "[1, inf)", "seed": "[0, 4294967295]"}
CHANGEABLE = ("every", "batch_size")


@dataclasses.dataclass(frozen=True)
class Examples:
    """An evaluation set.

    Attributes:
      stream: its examples by their number.
      rows: how many of them count; `batches` fills up with padding rows.
      batches: starts a pass over the set, as batches on the devices.
      records: starts a pass over the records that the rows were made of, in order.
      objective: the run's objective with the changes of this evaluation.
      codec: the tokenizer.
      train_counts: returns (V,) how often each token stands in the training rows.
    """

    stream: Stream
    rows: int
    batches: Callable[[], Iterator[Batch]]
    records: Callable[[], Iterator[Record]]
    objective: Objective
    codec: Codec
    train_counts: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Functions:
    """The model's functions, with the parameters to evaluate in them.

    Attributes:
      metrics: batch -> {metric: (sum, count)}.
      predict: batch -> (batch, predictions), whole arrays on every process.
      answer: (prompts as ids, settings) -> the answers to each, best first.
    """

    metrics: Callable[[Batch], Terms]
    predict: Callable[[Batch], tuple[Batch, dict[str, Any]]]
    answer: Callable[[Sequence[Sequence[int]], Settings], list[list[Answer]]]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where an evaluator writes what is no number.

    Attributes:
      samples: the file for texts; only process 0 writes it.
      note: writes a line to the log.
    """

    samples: Path
    note: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The base of every evaluator; its fields are `config.evals.<name>`.

    Attributes:
      data: the sources, like config.data.
      objective: fields of the run's objective that differ here.
      every: how often it runs; it runs once more at the end.
      batch_size: None is the training's.
      limit: at most so many examples, from the beginning; None is all.
      seed: of the masks of an evaluation, the same at every step.
    """

    data: dict = dataclasses.field(default_factory=dict)
    objective: dict = dataclasses.field(default_factory=dict)
    every: Duration = "10%"
    batch_size: int | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """What the model or the objective must offer, as words of their `can`.

        Checked before step 1; see lm/models/base.py and lm/objectives/base.py.
        """
        return frozenset()

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        """Yields the conditions on its own fields.

        Args:
          config: the complete config.
          where: the path of its section, such as "evals.dev".
        """
        yield from ()

    def yields(self, objective: Objective) -> tuple[str, ...] | None:
        """Names the metrics that `run` may yield; None where they are not known before.

        `checkpoint.best` and `stop.metric` are checked against them before step 1.
        """
        return None

    def run(
        self, examples: Examples, model: Functions, out: Outputs
    ) -> Iterator[tuple[str, float]]:
        """Yields (metric, value) of the set.

        A value that is not defined is NaN, and `out.note` tells why.
        """
        raise NotImplementedError(f"{type(self).__module__} has no method run")
