"""Records given in the config, for tests and notebooks."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lm.data.sources import base
from lm.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.Source):
    """Records from memory: a str becomes the field `text`, a dict gives all fields.

    As for `jsonl`, `text` must be a str; other fields may be str, int, float or bool.

    Args:
      items: the records in order.
      lists: whether a value may be a list, of str or of numbers.
      columns: the values to take, or {field: key or dotted path}; () takes all.
    """

    items: tuple[str | dict[str, Any], ...]
    lists: bool = False
    columns: tuple[str, ...] | dict[str, str] = ()

    def check(self) -> None:
        if not self.items:
            raise DataError(
                self.place, "no records", "at least one", 'set items=("a text",)'
            )

    def read(self) -> Iterator[base.Record | DataError]:
        for i, item in enumerate(self.items):
            fields = item if isinstance(item, dict) else {"text": item}
            columns = base.columns_of(self.columns or tuple(fields))
            yield base.take(fields, columns, f"memory[{i}]", self.lists)
