"""Converts the Cranfield collection from SMART's format to BEIR's.

python -m experiments.cranfield.convert FROM TO

FROM holds cran.all.1400, cran.qry and cranqrel; TO gets corpus.jsonl, queries.jsonl and
qrels.tsv. Every fifth query is held out: test.tsv has its judgements, and train.jsonl
the pairs of the other queries and the documents that answer them.

A document is the text of its .W field, which begins with the title. The judgements call
a query by its place in cran.qry (1 to 225), not by its number there, and the best grade
1: its gain is 4 here, and that of the worst, 4, is 1.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lm.formats import trec


def read_smart(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the number and the text (.W) of each record."""
    number, field, lines = "", "", []
    for line in [*path.read_text().splitlines(), ".I end"]:
        words = line.split()
        if line.startswith(".I") and len(words) < 2:
            continue  # A stray mark ends the files.
        if line.startswith(".I"):
            if number:
                yield number, " ".join(lines)
            number, field, lines = words[1], "", []
        elif line[:2] in (".T", ".A", ".B", ".W"):
            field = line[:2]
        elif field == ".W":
            lines += words


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(source: str, target: str) -> None:
    place, out = Path(source), Path(target)
    out.mkdir(parents=True, exist_ok=True)
    corpus = dict(read_smart(place / "cran.all.1400"))
    asked = enumerate(read_smart(place / "cran.qry"), 1)
    queries = {str(number): text for number, (_, text) in asked}
    for name, texts in (("corpus", corpus), ("queries", queries)):
        rows = ({"_id": id, "text": text} for id, text in texts.items())
        write_rows(out / f"{name}.jsonl", rows)
    qrels: dict[str, dict[str, int]] = {}
    for line in (place / "cranqrel").read_text().splitlines():
        query, document, grade = line.split()
        qrels.setdefault(query, {})[document] = 5 - int(grade)
    (out / "qrels.tsv").write_text(trec.format_qrels(qrels))
    test = {query: gains for query, gains in qrels.items() if int(query) % 5 == 0}
    (out / "test.tsv").write_text(trec.format_qrels(test))
    pairs = (
        {"text": queries[query], "positive": corpus[document]}
        for query, gains in qrels.items()
        for document in gains
        if query not in test
    )
    write_rows(out / "train.jsonl", pairs)


if __name__ == "__main__":
    main(*sys.argv[1:])
