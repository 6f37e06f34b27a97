"""Tab-separated files with named columns, without quoting unless it is asked for."""

import dataclasses
from pathlib import Path
from typing import Literal

from lm.data import files
from lm.data.sources import csv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(csv.Source):
    """As `csv`, but for tables such as GLUE's, where a quote is an ordinary character.

    Args:
      delimiter: what stands between cells.
      quoting: see `csv`.
    """

    delimiter: Literal[",", ";", "|", "\t"] = "\t"
    quoting: bool = False

    def check_suffix(self, path: Path, suffix: str) -> None:
        files.expect_suffix(path, suffix, (".tsv", ".txt"))
