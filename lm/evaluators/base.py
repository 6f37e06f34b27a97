"""What every evaluator has, and the functions that it is given."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lm.config.resolve import Duration
from lm.data.pipeline import Stream
from lm.data.sources.base import Record
from lm.decoding.loop import Answer, Settings

BOUNDS = {"batch_size": "[1, 1048576]", "limit": "[1, inf)", "seed": "[0, 4294967295]"}
CHANGEABLE = ("every", "batch_size")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """config.evals.<name>, beside `evaluator`, the name of its module.

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


@dataclasses.dataclass(frozen=True)
class Tools:
    """What an evaluator works with; it never sees the model.

    Attributes:
      stream: the evaluation set.
      rows: how many of its rows count.
      batches: a fresh pass over the set, as batches on the devices.
      metrics: (params, batch) -> {metric: (sum, count)}.
      predict: (params, batch) -> (batch, predictions), whole on every process.
      codec: the tokenizer.
      show: (batch, predictions, codec, row) -> a row as text.
      train_counts: (V,) how often each token stands in the training rows.
      samples: the file that samples go to.
      answer: (prompts as ids, settings) -> the answers to each, best first.
      prompt: a text as the ids of a prompt.
      records: what the rows were made of, in their order.
      references: the right answers of a record; None where the objective has none.
      note: where a line for the log goes.
    """

    stream: Stream
    rows: int
    batches: Callable[[], Iterator[dict[str, Any]]]
    metrics: Callable[[PyTree, dict], dict[str, tuple]]
    predict: Callable[[PyTree, dict], tuple[dict, dict]]
    codec: Any
    show: Callable[[dict, dict, Any, int], str]
    train_counts: Callable[[], np.ndarray]
    samples: Path
    answer: Callable[[Sequence[Sequence[int]], Settings], list[list[Answer]]]
    prompt: Callable[[str], list[int]]
    records: Callable[[], Iterator[Record]]
    references: Callable[[Record], tuple[str, ...]] | None
    note: Callable[[str], None]
