"""Runs and judgements of documents: the files of TREC, and the judgements of BEIR.

run     `QUERY Q0 DOCUMENT RANK SCORE TAG` on each line; the ranks are not read
qrels   `QUERY 0 DOCUMENT GAIN` on each line; or as BEIR has them, with the header
        `query-id<TAB>corpus-id<TAB>score`
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from lm.errors import DataError
from lm.host import inputs
from lm.host.inputs import Line

RUN = "QUERY Q0 DOCUMENT RANK SCORE TAG"
QRELS = "QUERY 0 DOCUMENT GAIN"
BEIR = ("query-id", "corpus-id", "score")
Note = Callable[[str], None]


def read_run(path: Path, note: Note = lambda line: None) -> dict[str, dict[str, float]]:
    """Reads a run: the scores of the documents of each query.

    Raises:
      DataError: names file and line of a line that is torn or wrong.
    """
    found: dict[str, dict[str, float]] = {}
    for line, cells in _rows(path, RUN, note):
        query, _, document, _, text, _ = cells
        score = _number(text)
        if score is None:
            raise DataError(line.where, f"the score {text!r:.60}", "a finite number")
        _put(found, query, document, score, line.where)
    if not found:
        raise DataError(str(path), "no line", f"lines {RUN}")
    return found


def format_run(run: Mapping[str, Mapping[str, float]], tag: str) -> str:
    """Formats a run, the documents of each query in the order given.

    Raises:
      DataError: an id that is empty or holds white space, which a line cannot hold.
    """
    lines = []
    for query, scores in run.items():
        for rank, (document, score) in enumerate(scores.items(), 1):
            for id in (query, document):
                check_id(id, f"run {tag}")
            lines.append(f"{query} Q0 {document} {rank} {score} {tag}\n")
    return "".join(lines)


def read_qrels(path: Path, note: Note = lambda line: None) -> dict[str, dict[str, int]]:
    """Reads judgements: the gains of the documents of each query.

    The first line tells TREC's form from BEIR's.

    Raises:
      DataError: names file and line of a line that is torn or wrong.
    """
    found: dict[str, dict[str, int]] = {}
    for line, (query, document, text) in _judged(path, note):
        try:
            gain = int(text)
        except ValueError:
            expected = "a whole number"
            raise DataError(line.where, f"the gain {text!r:.60}", expected) from None
        _put(found, query, document, gain, line.where)
    if not found:
        raise DataError(str(path), "no judgement", f"lines {QRELS}")
    return found


def format_qrels(qrels: Mapping[str, Mapping[str, int]]) -> str:
    """Formats judgements in BEIR's form."""
    lines = ["\t".join(BEIR) + "\n"]
    for query, gains in qrels.items():
        lines += [f"{query}\t{document}\t{gain}\n" for document, gain in gains.items()]
    return "".join(lines)


def check_known(
    qrels: Mapping[str, Mapping[str, int]],
    path: Path,
    queries: Collection[str],
    documents: Collection[str],
) -> None:
    """Checks that judgements speak of queries and documents that are there.

    Args:
      path: of the judgements, for the error.

    Raises:
      DataError: counts the ids that are unknown, and names the first.
    """
    asked = [query for query in qrels if query not in queries]
    judged = {id: None for gains in qrels.values() for id in gains}
    absent = [id for id in judged if id not in documents]
    for unknown, whole, what in (
        (asked, len(qrels), "queries"),
        (absent, len(judged), "documents"),
    ):
        if unknown:
            found = f"{len(unknown):,} unknown of {whole:,} {what}, such as"
            expected = f"ids of the {what} that are given"
            fix = "give the files that belong together"
            raise DataError(str(path), f"{found} {unknown[0]!r:.60}", expected, fix)


def check_id(id: str, where: str) -> None:
    """Raises a DataError for an id that a line of a run or of qrels cannot hold."""
    if id.split() != [id]:
        raise DataError(where, f"the id {id!r:.60}", "an id without white space")


def _judged(path: Path, note: Note) -> Iterator[tuple[Line, list[str]]]:
    """Yields each line of judgements with its query, document and gain."""
    lines = inputs.read_lines(Path(path), note, "a judgement")
    if lines and tuple(lines[0].text.rstrip().split("\t")) == BEIR:
        for line in lines[1:]:
            if line.text.strip():
                yield line, _cells(line, "<TAB>".join(BEIR), line.text.split("\t"))
        return
    for line, (query, _, document, gain) in _rows(path, QRELS, note, lines):
        yield line, [query, document, gain]


def _rows(
    path: Path, form: str, note: Note, lines: list[Line] | None = None
) -> Iterator[tuple[Line, list[str]]]:
    """Yields each line that is not empty with its fields, as many as the form has."""
    if lines is None:
        lines = inputs.read_lines(Path(path), note)
    for line in lines:
        if line.text.strip():
            yield line, _cells(line, form, line.text.split())


def _cells(line: Line, form: str, cells: list[str]) -> list[str]:
    count = len(form.replace("<TAB>", " ").split())
    if len(cells) != count:
        found = f"{len(cells)} fields ({line.text.strip()!r:.60})"
        raise DataError(line.where, found, f"the {count} fields {form}")
    return [cell.strip() for cell in cells]


def _put(
    found: dict[str, dict], query: str, document: str, value: float, where: str
) -> None:
    own = found.setdefault(query, {})
    if document in own:
        again = f"document {document!r:.60} of query {query!r:.60} again"
        raise DataError(where, again, "every document once for a query")
    own[document] = value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
