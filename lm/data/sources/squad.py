"""SQuAD: questions about paragraphs, answered by a part of the paragraph.

The JSON of version 1.1 (Rajpurkar et al. 2016) and of 2.0 (Rajpurkar et al. 2018),
which adds questions without an answer: `is_impossible`, and an empty list of answers.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data import files
from lm.data.sources import base
from lm.data.sources.jsonl import refuse, unique
from lm.errors import DataError

Place = tuple[str, Any]  # a path within the file, and what stands there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """The questions of JSON files, each with its context; `.gz` is unpacked.

    A record has the fields `id`, `title` (of the article), `question`, `context`,
    `answers`, a text or more, and `starts`, for each the character of the context at
    which it begins. A question without an answer has the one answer "" at 0. An error
    names the place within the file, such as `data.0.paragraphs.2.qas.1`; no two
    questions have the same id.
    """

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".json",))

    def read(self) -> Iterator[base.Record | DataError]:
        seen: dict[str, str] = {}
        for path in self.paths():
            for where, title, context, question in _questions(path):
                try:
                    record = _record(where, title, context, question)
                    first = seen.setdefault(record.fields["id"], where)
                    if first != where:
                        found = f"id {record.fields['id']!r:.60}, also that of {first}"
                        raise DataError(where, found, "an id of its own")
                    yield record
                except DataError as error:
                    yield error


def _questions(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    """Yields the place of each question, its title and context, and what is there."""
    articles = _items((f"{path}:", _load(path)), "data", "a list of articles")
    for article in articles:
        title = article[1].get("title", "") if isinstance(article[1], dict) else ""
        for paragraph in _items(article, "paragraphs", "a list of paragraphs"):
            questions = [*_items(paragraph, "qas", "a list of questions")]
            context = _text(paragraph[0], paragraph[1], "context")
            for where, question in questions:
                yield where, str(title), context, question


def _load(path: Path) -> Any:
    """Parses a file; DataError where it is no JSON."""
    text = files.decode(b"".join(files.read_lines(path)), path, 1)
    if isinstance(text, DataError):
        raise text
    parser = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse)
    try:
        return parser.decode(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        found = f"broken JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        where, found = str(path), f"JSON that cannot be taken ({error})"
    raise DataError(where, found, "one JSON object", "copy the file again")


def _items(place: Place, key: str, what: str) -> Iterator[Place]:
    """Yields the places of the list that stands under a key."""
    where, value = place
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        there = f"{type(found if isinstance(value, dict) else value).__name__}"
        if isinstance(value, dict) and key not in value:
            there = f"keys {', '.join(map(repr, [*value][:8])) or 'none'}"
        fix = "for other forms of records there is the source jsonl"
        raise DataError(where.rstrip(":."), there, f"{key!r}, {what}", fix)
    joint = "" if where.endswith(":") else "."
    yield from ((f"{where}{joint}{key}.{n}", item) for n, item in enumerate(found))


def _text(where: str, row: dict[str, Any], key: str) -> str:
    """Returns the text that stands under a key; DataError where there is none."""
    if not isinstance(row.get(key), str):
        found = repr(row[key])[:60] if key in row else "nothing"
        raise DataError(where, f"{found} as {key!r}", "a text")
    return row[key]


def _record(where: str, title: str, context: str, question: Any) -> base.Record:
    """Makes the record of a question; DataError where something is missing."""
    if not isinstance(question, dict):
        raise DataError(where, f"a {type(question).__name__}", "a question, an object")
    own = {key: _text(where, question, key) for key in ("id", "question")}
    impossible = question.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(where, f"is_impossible {impossible!r:.40}", "true or false")
    answers = [*_items((where, question), "answers", "a list of answers")]
    if impossible == bool(answers):
        found = f"{len(answers)} answers and is_impossible {str(impossible).lower()}"
        expected = "an answer, or is_impossible true and none"
        raise DataError(where, found, expected)
    texts, starts = [""] * impossible, [0] * impossible
    for place, answer in answers:
        row = answer if isinstance(answer, dict) else {}
        texts.append(_text(place, row, "text"))
        if type(start := row.get("answer_start")) is not int:
            raise DataError(place, f"answer_start {start!r:.40}", "a whole number")
        starts.append(start)
    fields = {"title": title, "context": context, "answers": texts, "starts": starts}
    made = base.make_record(own | fields, where, lists=True)
    if isinstance(made, DataError):
        raise made
    return made
