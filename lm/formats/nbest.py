"""n-best lists of a recogniser or translator: hypotheses with scores, references.

JSON lines  {"id": ..., "ref": ..., "hyps": [[score, text], ...]} on each line
ESPnet      {ID: {"ref": ..., "hyp_1": {"score": ..., "text": ...}, ...}}
Kaldi       two or three files of lines `ID-N WORDS`, `ID-N SCORE` and `ID WORDS`
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import DataError
from lm.host import files, inputs
from lm.host.inputs import Line

JSONL = '{"id": "...", "ref": "...", "hyps": [[score, "text"], ...]}'
ESPNET = '{"ref": "...", "hyp_1": {"score": ..., "text": "..."}, ...}'
Note = Callable[[str], None]


class Hypothesis(NamedTuple):
    """A text and its score, the larger the better; a log-probability in most tools."""

    score: float
    text: str


class Utterance(NamedTuple):
    """The hypotheses for one utterance, in the order of the file.

    Attributes:
      where: its place in the file, for errors.
      reference: None where the file has none.
    """

    where: str
    id: str
    reference: str | None
    hypotheses: tuple[Hypothesis, ...]


def read(name: str, note: Note = lambda line: None) -> list[Utterance]:
    """Reads a list: of JSON lines, of ESPnet (.json), or of Kaldi.

    Args:
      name: the file; of Kaldi the files of texts, scores and references, which may be
        left out, separated by commas.

    Raises:
      DataError: names file and line of what is missing or wrong.
    """
    paths = name.split(",")
    if len(paths) > 1:
        found = [*_kaldi(*paths[:3], note=note)] if len(paths) < 4 else []
    elif paths[0].removesuffix(".gz").endswith(".json"):
        found = [*_espnet(paths[0], note)]
    else:
        lines = inputs.read_lines(Path(name), note)
        found = [_parse(line) for line in lines if line.text.strip()]
    if not found:
        raise DataError(name, "no utterance", "at least one")
    seen: dict[str, str] = {}
    for one in found:
        if one.id in seen:
            again = f"the id {one.id!r} again (first at {seen[one.id]})"
            raise DataError(one.where, again, "every id once")
        seen[one.id] = one.where
    return found


def require_references(utterances: Sequence[Utterance], fix: str) -> None:
    """Raises a DataError for the first utterance that has no reference."""
    for one in utterances:
        if one.reference is None:
            found = f"no reference for {one.id!r}"
            raise DataError(one.where, found, "one, to count errors", fix)


def _parse(line: Line) -> Utterance:
    """Reads a JSON line."""
    row = inputs.parse_object(line, JSONL)
    hyps = row.get("hyps")
    if not isinstance(hyps, list) or not hyps:
        raise DataError(line.where, "no list 'hyps' of hypotheses", JSONL)
    found = []
    for n, pair in enumerate(hyps):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(line.where, f"hyps.{n} = {pair!r:.60}", '[score, "text"]')
        score, text = pair
        found.append(_hypothesis(score, text, f"hyps.{n}", line.where))
    return _utterance(row.get("id"), row.get("ref"), found, line.where, JSONL)


def _utterance(
    id: Any, reference: Any, found: list[Hypothesis], where: str, example: str
) -> Utterance:
    if not isinstance(id, str) or not id:
        raise DataError(where, f"id={id!r:.60}", f"a text, in {example}")
    if reference is not None and not isinstance(reference, str):
        raise DataError(where, f"ref={reference!r:.60}", f"a text, in {example}")
    return Utterance(where, id, reference, tuple(found))


def _hypothesis(score: Any, text: Any, name: str, where: str) -> Hypothesis:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not math.isfinite(score):
        raise DataError(where, f"the score {score!r:.60} of {name}", "a finite number")
    if not isinstance(text, str):
        raise DataError(where, f"the text {text!r:.60} of {name}", "a text")
    return Hypothesis(float(score), text)


def _espnet(name: str, note: Note) -> Iterator[Utterance]:
    """Reads a JSON object of utterances, whose place is the line of their id."""
    lines = inputs.read_lines(Path(name), note)
    text = "\n".join(line.text for line in lines)
    whole = files.parse_json(text, name, {}, DataError, f"an object of {ESPNET}")
    starts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        head = line.text.strip().partition(":")[0]
        starts.setdefault(head, number)
    for id, row in whole.items():
        where = f"{name}:{starts.get(json.dumps(id, ensure_ascii=False), 1)}"
        if not isinstance(row, dict):
            raise DataError(where, f"{row!r:.60} for {id!r}", ESPNET)
        names = [key for key in row if key.startswith("hyp_")]
        wrong = [key for key in names if not key.removeprefix("hyp_").isdecimal()]
        if not names or wrong:
            what = f"{wrong[0]!r}" if wrong else f"no hyp_1 for {id!r}"
            raise DataError(where, what, ESPNET)
        found = []
        for key in sorted(names, key=lambda key: int(key.removeprefix("hyp_"))):
            one = row[key]
            if not isinstance(one, dict):
                raise DataError(where, f"{key}={one!r:.60}", ESPNET)
            place = f"{id}.{key}"
            found.append(_hypothesis(one.get("score"), one.get("text"), place, where))
        yield _utterance(id, row.get("ref"), found, where, ESPNET)


def _kaldi(
    texts: str, scores: str, references: str | None = None, *, note: Note
) -> Iterator[Utterance]:
    """Reads files of Kaldi, whose keys of hypotheses are `ID-N`."""
    numbers = {key: (where, rest) for where, key, rest in _keys(scores, note)}
    known = {key: rest for _, key, rest in _keys(references, note)}
    groups: dict[str, list[Hypothesis]] = {}
    places: dict[str, str] = {}
    for where, key, text in _keys(texts, note):
        id, dash, rank = key.rpartition("-")
        if not dash or not rank.isdecimal():
            raise DataError(
                where, f"the key {key!r}", "ID-N, the N-th hypothesis of ID"
            )
        if key not in numbers:
            raise DataError(where, f"no score of {key!r}", f"one in {scores}")
        place, value = numbers.pop(key)
        try:
            score = float(value)
        except ValueError:
            raise DataError(place, f"the score {value!r:.60}", "a number") from None
        hypothesis = _hypothesis(score, text, key, place)
        groups.setdefault(id, []).append(hypothesis)
        places.setdefault(id, where)
    for key, (where, _) in numbers.items():
        raise DataError(where, f"a score of {key!r}", f"keys that {texts} has")
    for id, found in groups.items():
        yield Utterance(places[id], id, known.get(id), tuple(found))


def _keys(name: str | None, note: Note) -> Iterator[tuple[str, str, str]]:
    """Yields the place, the key and the rest of each line of a file of Kaldi."""
    seen = set()
    for line in inputs.read_lines(Path(name), note) if name else ():
        key, _, rest = line.text.strip().partition(" ")
        if not key:
            continue
        if key in seen:
            raise DataError(line.where, f"the key {key!r} again", "every key once")
        seen.add(key)
        yield line.where, key, rest.strip()
