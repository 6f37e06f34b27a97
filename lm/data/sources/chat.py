"""Conversations: JSON Lines with a list of messages on every line."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data import files
from lm.data.sources import base
from lm.data.sources.jsonl import objects
from lm.errors import DataError

# The keys of a message, in the form of most sets and in that of ShareGPT.
KEYS = (("role", "content"), ("from", "value"))
# Names of roles in ShareGPT.
NAMES = {"human": "user", "gpt": "assistant"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Conversations from JSON objects, one per line; `.gz` is unpacked.

    A record has the fields `roles` and `contents`, a text for each message. A message
    is {"role": ..., "content": ...}, or, as in ShareGPT, {"from": ..., "value": ...}
    with "human" and "gpt"; its other keys are not read. Which roles may follow each
    other, the objective says.

    Args:
      messages: the key of the list, or a dotted path.
      columns: further texts or numbers of a record, as in the source jsonl.
    """

    messages: str = "messages"
    columns: tuple[str, ...] | dict[str, str] = ()

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".jsonl", ".ndjson", ".json"))

    def check(self) -> None:
        super().check()
        for path in self.paths():
            # As for jsonl: what the first line lacks, all lines probably lack.
            for where, row in objects(path):
                if isinstance(row, dict) and self.messages.partition(".")[0] not in row:
                    raise self._absent(row, where)
                break

    def read(self) -> Iterator[base.Record | DataError]:
        for path in self.paths():
            for where, row in objects(path):
                yield self._record(row, where) if isinstance(row, dict) else row

    def _record(self, row: dict[str, Any], where: str) -> base.Record | DataError:
        """Makes the record of a conversation, or the error for what is wrong in it."""
        more = base.columns_of(self.columns) if self.columns else {}
        made = base.take(row, more, where, False)
        if isinstance(made, DataError):
            return made
        messages = base.value_at(row, self.messages)
        if messages is base.ABSENT:
            return self._absent(row, where)
        if not isinstance(messages, list) or not messages:
            found = "an empty list" if messages == [] else type(messages).__name__
            expected = 'a list of {"role": ..., "content": ...}'
            return DataError(where, f"{self.messages!r} as {found}", expected)
        turns = [turn_of(each, where, n) for n, each in enumerate(messages, 1)]
        for turn in turns:
            if isinstance(turn, DataError):
                return turn
        roles, contents = zip(*turns)
        fields = {"roles": roles, "contents": contents}
        return base.make_record(made.fields | fields, where, lists=True)

    def _absent(self, row: dict[str, Any], where: str) -> DataError:
        """Makes the error for a row without messages."""
        lists = [name for name, value in row.items() if isinstance(value, list)]
        fix = f"set messages={lists[0]!r}" if lists else None
        names = ", ".join(f"{name[:40]!r}" for name in [*row][:20]) or "none"
        return DataError(where, f"keys {names}", f"a key {self.messages!r}", fix)


def turn_of(message: Any, where: str, number: int) -> tuple[str, str] | DataError:
    """Returns role and content of a message, or what is wrong with it.

    Args:
      number: of the message, from 1.
    """
    expected = '{"role": ..., "content": ...} with texts'
    place = f"message {number}"
    if not isinstance(message, dict):
        return DataError(where, f"{place} as {type(message).__name__}", expected)
    role, content = next((k for k in KEYS if k[0] in message), KEYS[0])
    for key in (role, content):
        if not isinstance(message.get(key), str):
            what = f"{key} {message[key]!r:.60}" if key in message else f"no {key}"
            return DataError(where, f"{place} with {what}", expected)
    name = str(message[role])
    return NAMES.get(name, name) if role == "from" else name, message[content]
