"""Converts the Cranfield collection from SMART's format to BEIR's.

python -m experiments.cranfield.convert FROM TO

FROM holds cran.all.1400, cran.qry and cranqrel, TO gets corpus.jsonl, queries.jsonl and
qrels.tsv. A document is the text of its .W field, which begins with the title. The
judgements call a query by its place in cran.qry (1 to 225), not by its number there,
and the best grade 1: its gain is 4 here, and that of the worst, 4, is 1.
"""

import json
import sys
from collections.abc import Iterator
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


def write_texts(path: Path, texts: Iterator[tuple[str, str]]) -> None:
    """Writes texts with ids as JSON lines."""
    rows = (json.dumps({"_id": id, "text": text}) + "\n" for id, text in texts)
    path.write_text("".join(rows))


def main(source: str, target: str) -> None:
    place, out = Path(source), Path(target)
    out.mkdir(parents=True, exist_ok=True)
    write_texts(out / "corpus.jsonl", read_smart(place / "cran.all.1400"))
    queries = enumerate(read_smart(place / "cran.qry"), 1)
    write_texts(out / "queries.jsonl", ((str(n), text) for n, (_, text) in queries))
    qrels: dict[str, dict[str, int]] = {}
    for line in (place / "cranqrel").read_text().splitlines():
        query, document, grade = line.split()
        qrels.setdefault(query, {})[document] = 5 - int(grade)
    (out / "qrels.tsv").write_text(trec.format_qrels(qrels))


if __name__ == "__main__":
    main(*sys.argv[1:])
