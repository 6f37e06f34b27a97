"""The data of a run: its tokenizer, its training rows and those of its evaluations."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.config.resolve import Config
from lm.data import pipeline, summary
from lm.data.pipeline import Shares
from lm.data.stream import Stream
from lm.tokenizers.base import Codec


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The data of a run; `run.open_corpus` opens it.

    The rows are indexed when they are first asked for.

    Attributes:
      config: the run's config.
      objective: the task, which decides how rows become examples.
      codec: the tokenizer.
      shares: which process this is, and of how many.
      open: (section, seed, train, changes, rows, limit) -> the stream of a `data`
        section; the changes are fields of the objective that differ in it, the rows
        those of a batch, and the limit the rows of an evaluation.
      note: writes a line to the log.
      ends: the ids that end an answer; None: the tokenizer's eos.
    """

    config: Config
    objective: Any
    codec: Codec
    shares: Shares
    open: Callable[..., Stream]
    note: Callable[[str], None]
    ends: tuple[int, ...] | None = None

    @functools.cached_property
    def stream(self) -> Stream:
        """The training examples."""
        return self.open(self.config.data, seed=self.config.seed, train=True)

    @functools.cached_property
    def evals(self) -> dict[str, Stream]:
        """The examples of each evaluation, by its name."""
        return {
            name: self.open(
                e.data,
                seed=e.seed,
                train=False,
                changes=e.objective,
                rows=e.batch_size,
                limit=e.limit,
            )
            for name, e in self.config.evals.items()
        }

    def identity(self) -> dict[str, Any]:
        """Returns what checkpoints keep of the data (`pipeline.fingerprint`)."""
        evals = {
            name: pipeline.identity_of(self.config.evals[name], stream)
            for name, stream in self.evals.items()
        }
        size = self.config.batch_size
        return pipeline.fingerprint(self.stream, self.codec, size, evals)

    def token_counts(self) -> np.ndarray:
        """Counts how often each token occurs in the training rows, (V,)."""
        size = self.codec.vocab_size
        counts = [index.token_counts(size) for index in self.stream.indices]
        return np.sum(counts, axis=0)

    def describe(self, length: str) -> str:
        """Summarises the data, in lines for the log.

        Args:
          length: how long the run is, such as "100 steps of 8 rows are 2.5 epochs".
        """
        tokens = sum(index.facts["tokens"] for index in self.stream.indices)
        names = self.config.objective.get("labels", ())
        return "\n".join(
            [
                f"data: {len(self.stream):,} rows, {tokens:,} tokens, vocabulary "
                f"{self.codec.vocab_size:,}",
                f"  {length}",
                *summary.describe(self.stream, self.evals, names),
            ]
        )
