"""Texts with ids: a corpus, or queries.

.jsonl  {"_id": "...", "title": "...", "text": "..."} on each line, as BEIR has them;
        "id" for "_id" too, and the title may be left out
.tsv    `ID<TAB>TEXT` on each line, as MS MARCO has them
others  a text on each line, whose id is the number of the line
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import DataError
from lm.formats.trec import check_id
from lm.host import inputs
from lm.host.inputs import STDIN, Line

EXAMPLE = '{"_id": "...", "text": "..."}'
JSONL = (".jsonl", ".ndjson")


class Texts(NamedTuple):
    """Texts and their ids, each once, in the order of a file."""

    ids: list[str]
    texts: list[str]


def read(path: Path | None, note: Callable[[str], None] = lambda line: None) -> Texts:
    """Reads texts; `.gz` is decompressed.

    Args:
      path: None is standard input, a text on each line.

    Raises:
      DataError: names file and line of what is missing, wrong or double.
    """
    suffix = "" if path is None else Path(path.name.removesuffix(".gz")).suffix.lower()
    lines = inputs.read_lines(path, note)
    parts = {**dict.fromkeys(JSONL, _of_json), ".tsv": _of_cells}.get(suffix, _of_lines)
    found, places = Texts([], []), dict[str, str]()
    for line, id, text in parts(lines):
        check_id(id, line.where)
        if id in places:
            again = f"the id {id!r:.60} again (first at {places[id]})"
            raise DataError(line.where, again, "every id once")
        places[id] = line.where
        found.ids.append(id)
        found.texts.append(text)
    if not found.ids:
        raise DataError(STDIN if path is None else str(path), "no text", "at least one")
    return found


Parts = Iterator[tuple[Line, str, str]]


def _of_json(lines: list[Line]) -> Parts:
    for line in lines:
        if not line.text.strip():
            continue
        row = inputs.parse_object(line, EXAMPLE)
        text = inputs.text_field(row, "text", line.where, EXAMPLE)
        if row.get("title"):
            title = inputs.text_field(row, "title", line.where, EXAMPLE)
            text = f"{title} {text}".strip()
        yield line, _id_of(row, line.where), text


def _id_of(row: dict[str, Any], where: str) -> str:
    name = next((name for name in ("_id", "id") if name in row), "_id")
    if type(row.get(name)) is int:
        return str(row[name])
    return inputs.text_field(row, name, where, EXAMPLE)


def _of_cells(lines: list[Line]) -> Parts:
    for line in lines:
        if not line.text.strip():
            continue
        id, tab, text = line.text.partition("\t")
        if not tab:
            raise DataError(line.where, f"{line.text!r:.60}", "ID<TAB>TEXT")
        yield line, id.strip(), text


def _of_lines(lines: list[Line]) -> Parts:
    for number, line in enumerate(lines, 1):
        yield line, str(number), line.text
