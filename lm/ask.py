"""Part: asks a run about records without labels: rows in few shapes, answers in order.

Records are taken by the chunk. The rows of a chunk are sorted by their length, so that
a batch has little padding and few shapes are compiled. A chunk is computed as a whole:
an output that was stopped and continued equals one that was not.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lm import run as runs
from lm.config import schema
from lm.data import buckets
from lm.data.index import Index, Rows
from lm.data.pipeline import this_process
from lm.data.sources.base import Record
from lm.data.stream import without_weight
from lm.errors import NumericalError
from lm.objectives.base import Asked
from lm.training import sharding

FIX = "the weights have gone wrong: ask an earlier checkpoint (--checkpoint=STEP)"
CHUNK = 32  # batches; fewer would have more padding, more would be lost by a kill


@dataclasses.dataclass(frozen=True)
class Asker:
    """A run, ready to be asked.

    Attributes:
      opened: the run; its objective offers "answers".
      batch_size: rows of a batch, over all devices.
      predict: (parameters, batch) -> (batch, predictions).
    """

    opened: runs.Run
    batch_size: int
    predict: Callable[..., tuple[Any, dict[str, Any]]]

    @property
    def chunk(self) -> int:
        """How many records are answered at a time."""
        return CHUNK * self.batch_size

    def answers(
        self, records: Iterable[Record]
    ) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Yields each record with its answer, in their order.

        Raises:
          DataError: a record that has no answer.
          NumericalError: a prediction is no number.
        """
        objective, codec = self._objective, self.opened.corpus.codec
        for record, asked in self.asked(records):
            yield record, objective.answers(record, asked, codec)

    def asked(self, records: Iterable[Record]) -> Iterator[tuple[Record, list[Asked]]]:
        """Yields each record with its rows and what is predicted for them, in order.

        What is predicted depends on the other records of a chunk by no more than
        rounding.

        Raises:
          DataError: a record that cannot become rows.
          NumericalError: a prediction is no number.
        """
        records = iter(records)
        while chunk := list(itertools.islice(records, self.chunk)):
            yield from zip(chunk, self._ask(chunk))

    def _ask(self, records: Sequence[Record]) -> list[list[Asked]]:
        """Returns the rows of each record of a chunk."""
        rows = self._rows(records)
        examples = self._examples(row for _, row in rows)
        predictions = self._predict(examples)
        found: list[list[Asked]] = [[] for _ in records]
        for (record, row), example, said in zip(rows, examples, predictions):
            found[record].append(Asked(row, example, said))
        return found

    @property
    def _objective(self) -> Any:
        return self.opened.corpus.objective.unlabelled()

    @functools.cached_property
    def _layout(self) -> Any:
        codec, seq_len = self.opened.corpus.codec, self.opened.config.seq_len
        return self._objective.layout(codec, seq_len=seq_len, pack=False)

    @functools.cached_property
    def _transforms(self) -> tuple[Callable[..., dict[str, Any]], ...]:
        none = np.zeros(1, np.int64)
        index = Index(tokens=none[:0], spans=none, rows=none, fields={}, facts={})
        codec, seq_len = self.opened.corpus.codec, self.opened.config.seq_len
        return self._objective.transforms(index, codec, seq_len=seq_len)

    def shapes(self, record: Record) -> Any:
        """Returns the shapes of what is predicted for one row of a record."""
        (_, row), *_ = self._rows([record])
        batch = {k: v[None] for k, v in self._examples([row])[0].items()}
        return jax.eval_shape(self.predict, self.opened.params, batch)[1]

    def _examples(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        transforms, examples = self._transforms, []
        rng = np.random.default_rng(0)  # `predict` needs no draw
        for example in rows:
            for transform in transforms:
                example = transform(example, rng)
            examples.append(example)
        return examples

    def _rows(self, records: Sequence[Record]) -> list[tuple[int, dict[str, Any]]]:
        """Makes the rows of records, each with the number of its record here."""
        texts = [self._layout.texts(record) for record in records]
        ids = iter(self.opened.corpus.codec.encode_batch([*itertools.chain(*texts)]))
        out = Rows()

        def encoded() -> Iterator[tuple[Record, list[list[int]]]]:
            for out.record, (record, own) in enumerate(zip(records, texts)):
                yield record, [next(ids) for _ in own]

        self._layout.write(encoded(), out)
        return out.rows

    def _predict(self, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the predictions for each example, on the host."""
        sizes = [buckets.used(example) for example in examples]
        order = sorted(range(len(examples)), key=lambda n: -sizes[n])
        asked = []
        for first in range(0, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            batch = self._batch(
                [examples[n] for n in numbers], self._length(sizes[numbers[0]])
            )
            asked.append((numbers, self.predict(self.opened.params, batch)[1]))
            jax.block_until_ready(asked[-2:-1])  # as in lm/fit.py
        found: list[dict[str, Any]] = [{} for _ in examples]
        for numbers, predictions in asked:
            arrays = jax.device_get(predictions)
            if any(np.isnan(leaf).any() for leaf in jax.tree.leaves(arrays)):
                wrong = f"predictions at step {self.opened.step} that are no numbers"
                raise NumericalError("model", wrong, "numbers", FIX)
            for place, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda leaf, i=place: leaf[i], arrays)
        return found

    def _length(self, size: int) -> int:
        """Returns the positions of a batch whose longest row has `size` of them."""
        parts = self.opened.program.mesh.shape["sequence"]
        longest = self.opened.config.seq_len
        return buckets.round_up(size, longest, parts)

    def _batch(self, examples: list[dict[str, Any]], length: int) -> dict[str, Any]:
        """Puts examples on the devices, filled up to a whole batch."""
        more = [without_weight(examples[0])] * (self.batch_size - len(examples))
        shares = this_process()
        size = self.batch_size // shares.processes
        own = [*examples, *more][shares.process * size : (shares.process + 1) * size]
        along = self._objective.along
        rows = [buckets.cut(example, length, along) for example in own]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return runs.on_devices(arrays, self.opened.program.mesh)


def open_asker(opened: runs.Run, batch_size: int) -> Asker:
    """Makes a run ready to be asked for predictions.

    Raises:
      ConfigError: a batch does not divide over the mesh.
    """
    sharding.check_batch(batch_size, 1, opened.program.mesh)
    return Asker(opened, batch_size, opened.program.predict)


def fields_of(objective: Any, what: str | None, where: str) -> list[str]:
    """Returns the fields of an answer that are asked for.

    Args:
      what: a word of the objective's `says`; None is the first.
      where: the flag or argument that says so, for the error.

    Raises:
      ConfigError: the objective does not offer it.
    """
    says = objective.says
    chosen = next(iter(says)) if what is None else what
    if chosen not in says:
        raise schema.no_such(where, chosen, says)
    return [*says[chosen], "truncated"]
