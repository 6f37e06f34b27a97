"""Folds: the records of a source in k parts, one of which is evaluated.

Which part a record belongs to depends on the source, the seed and k alone, so that the
training rows of one config and the evaluation rows of another never overlap.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm.data.sources.base import Record, column_of
from lm.errors import DataError


@dataclasses.dataclass(frozen=True)
class Folded:
    """A source without one of its folds, or that fold alone.

    Args:
      source: the source.
      number: of the fold, from 1.
      count: how many folds there are.
      labels: the column whose values every fold has in the same proportions, within a
        record of each; None: only the sizes of the folds are equal.
      groups: a column whose value all records of a fold share with no other fold, such
        as an author; None: records are independent. With groups the proportions are as
        equal as the sizes of the groups allow.
      seed: of the assignment.
      inside: whether these are the records of the fold, or all others.
    """

    source: Any
    number: int
    count: int
    labels: str | None
    groups: str | None
    seed: int
    inside: bool

    @property
    def place(self) -> str:
        return self.source.place

    def fingerprint(self) -> str:
        """Returns a sha256 of the source's and of what chooses the records."""
        chosen = [self.number, self.count, self.labels, self.groups, self.seed]
        text = json.dumps([self.source.fingerprint(), *chosen, self.inside])
        return hashlib.sha256(text.encode()).hexdigest()

    def records(self) -> Iterator[Record | DataError]:
        """Yields the records in the order of the source; unreadable ones always."""
        place = self._by_group() if self.groups else self._by_turns()
        for item in self.source.records():
            if (
                isinstance(item, DataError)
                or (place(item) == self.number - 1) == self.inside
            ):
                yield item

    def _label(self, record: Record) -> str:
        return "" if self.labels is None else repr(column_of(record, self.labels))

    def _by_turns(self) -> Any:
        """Returns record -> fold: k records of a label are in k folds, at random."""
        waiting: dict[str, list[int]] = {}
        blocks: collections.Counter[str] = collections.Counter()

        def place(record: Record) -> int:
            label = self._label(record)
            if not waiting.get(label):
                rng = self._generator(label, blocks[label])
                waiting[label] = rng.permutation(self.count).tolist()
                blocks[label] += 1
            return waiting[label].pop()

        return place

    def _by_group(self) -> Any:
        """Returns record -> fold; reads the source once before.

        The largest group comes first, and each into the fold that then is most even.
        """
        assert self.groups is not None
        held: dict[str, collections.Counter[str]] = {}
        for item in self.source.records():
            if isinstance(item, Record):
                group = repr(column_of(item, self.groups))
                own = held.setdefault(group, collections.Counter())
                own[self._label(item)] += 1
        total: collections.Counter[str] = collections.Counter()
        for own in held.values():
            total.update(own)
        lots = {group: self._generator(group, 0).random() for group in held}
        order = sorted(held, key=lambda g: (-held[g].total(), lots[g]))
        folds = [collections.Counter[str]() for _ in range(self.count)]
        chosen: dict[str, int] = {}

        def unevenness(fold: int, own: collections.Counter[str]) -> tuple[float, int]:
            filled = folds[fold]
            more = sum((2 * filled[k] + n) * n / total[k] for k, n in own.items())
            return more, filled.total()

        for group in order:
            costs = [unevenness(fold, held[group]) for fold in range(self.count)]
            best = costs.index(min(costs))
            chosen[group] = best
            folds[best].update(held[group])
        return lambda record: chosen[repr(column_of(record, self.groups or ""))]

    def _generator(self, text: str, block: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed} {self.count} {block} {text}".encode())
        return np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
