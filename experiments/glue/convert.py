"""Writes SST-2 and STS-B as GLUE ships them, from files without a header.

    python -m experiments.glue.convert SST2_DIR STSB_DIR OUT

SST2_DIR has train.tsv and dev.tsv (sentence, label), STSB_DIR stsb-en-train.csv and
stsb-en-dev.csv (sentence, sentence, score). OUT gets SST-2/ and STS-B/ with train.tsv
and dev.tsv; the quotation marks of the CSV are gone, since GLUE's files have none.
"""

import csv
import sys
from pathlib import Path


def write(file: Path, header: list[str], rows: list[list[str]]) -> None:
    """Writes rows with tabs between cells, which may hold none themselves."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(" ".join(cell.split()) for cell in row) for row in rows]
    file.write_text("\n".join(["\t".join(header), *lines]) + "\n", encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    sst2, stsb, out = map(Path, sys.argv[1:])
    for part in ("train", "dev"):
        with open(sst2 / f"{part}.tsv", encoding="utf-8", newline="") as file:
            rows = [*csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
        write(out / "SST-2" / f"{part}.tsv", ["sentence", "label"], rows)
        with open(stsb / f"stsb-en-{part}.csv", encoding="utf-8", newline="") as file:
            rows = [*csv.reader(file)]
        header = ["sentence1", "sentence2", "score"]
        write(out / "STS-B" / f"{part}.tsv", header, rows)


if __name__ == "__main__":
    main()
