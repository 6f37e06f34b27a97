"""Tab-separated files with named columns, by default without quoting."""

import dataclasses
from pathlib import Path
from typing import Literal

from lm.data import files
from lm.data.sources import csv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(csv.Source):
    """Records from tab-separated tables such as GLUE's; quotes are ordinary characters.

    Args:
      delimiter: the character between cells.
      quoting: see `csv`.
    """

    delimiter: Literal[",", ";", "|", "\t"] = "\t"
    quoting: bool = False

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".tsv", ".txt"))
