"""JSON Lines: one object on every line."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data import files
from lm.data.sources import base
from lm.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Records from JSON objects, one per line; blank lines are skipped.

    `text` must be a string; other columns may be strings, numbers (kept as int or
    float) or booleans. Null, objects, NaN, duplicate keys and, unless `lists` is set,
    lists make a bad record.

    Args:
      columns: the keys to take, or {field: key} to give them other names. A path goes
        into objects and lists: {"answer": "answers.text.0"}.
      lists: whether a column may hold a list of strings or of numbers, such as the
        sentences of a document, several references, words and their tags.
    """

    columns: tuple[str, ...] | dict[str, str] = ("text",)
    lists: bool = False

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".jsonl", ".ndjson", ".json"))

    def check(self) -> None:
        super().check()
        columns = base.columns_of(self.columns)
        for path in self.paths():
            # A first line that is not an object may be a single bad record, but a
            # column that is missing there is probably missing in all lines.
            for where, row in objects(path):
                if isinstance(row, dict):
                    item = base.take(row, columns, where, self.lists)
                    if isinstance(item, DataError):
                        raise item
                break

    def read(self) -> Iterator[base.Record | DataError]:
        columns = base.columns_of(self.columns)
        for path in self.paths():
            for where, row in objects(path):
                if isinstance(row, dict):
                    yield base.take(row, columns, where, self.lists)
                else:
                    yield row


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """Yields the location and the object, or the error, of every non-blank line."""
    parser = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse)
    for number, raw in enumerate(files.read_lines(path), 1):
        if raw.isspace():
            continue
        where, fix = f"{path}:{number}", None
        text = files.decode(raw, path, number)
        if isinstance(text, DataError):
            yield where, text
            continue
        try:
            row = parser.decode(text.rstrip())
        except json.JSONDecodeError as error:
            row = f"broken JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:
            row = f"JSON that cannot be taken ({error})"
        else:
            if isinstance(row, dict):
                yield where, row
                continue
            row = f"a JSON {type(row).__name__}"
        if number == 1:
            fix = several_lines(text, path)
        yield where, DataError(where, row, "one JSON object on the line", fix)


def several_lines(text: str, path: Path) -> str | None:
    """Returns the fix for a file that is one JSON value, judged by its first line."""
    items = {"[": "json.load(open({0!r}))", "{": "[json.load(open({0!r}))]"}
    read = items.get(text.lstrip()[:1], "").format(str(path))
    if not read:
        return None
    return (
        "if the whole file is one JSON value, write its objects one on a line: python "
        f'-c "import json; [print(json.dumps(r)) for r in {read}]" > NEW.jsonl'
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return row


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
