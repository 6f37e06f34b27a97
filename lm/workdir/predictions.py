"""Reads the predictions of a run that an evaluation "predictions" has written."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import ConfigError, DataError
from lm.host import files

MOST = 2**31  # bytes of a file


class Predictions(NamedTuple):
    """The predictions of a run.

    Attributes:
      name: the workdir, as it was given.
      hashes: of the records.
      labels: (n,) or (n, classes).
      predicted: probabilities (n, classes), or scores (n,).
      classes: the names of the classes; () of numbers.
    """

    name: str
    hashes: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "classes" if self.classes else "numbers"


def read(workdir: Path, evaluation: str, step: str | None) -> Predictions:
    """Reads the predictions of a run.

    Raises:
      ConfigError: the folder is no run.
      DataError: the run has no such predictions, or the file is damaged.
    """
    if not (workdir / "config.json").is_file():
        raise ConfigError(str(workdir), "no config.json in it", "the workdir of a run")
    pattern = re.compile(rf"{re.escape(evaluation)}-(\d+)\.jsonl")
    folder = workdir / "predictions"
    steps = sorted(
        int(match[1])
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (match := pattern.fullmatch(file.name))
    )
    if not steps or (step is not None and int(step) not in steps):
        there = f"steps {', '.join(map(str, steps))}" if steps else "no predictions"
        raise DataError(
            str(folder),
            f"{there} of evaluation {evaluation!r}",
            "those of the last step" if step is None else f"those of step {step}",
            f"python -m lm.evaluate --workdir={workdir} "
            f"--config.evals.{evaluation}.write=True writes them, if its evaluator is "
            "predictions",
        )
    path = folder / f"{evaluation}-{steps[-1] if step is None else step}.jsonl"
    lines = files.read_text(path, limit=MOST, error=DataError).splitlines()
    rows = [
        files.parse_json(line, f"{path}:{n}", {"hash": ""}, DataError, "a prediction")
        for n, line in enumerate(lines, 1)
    ]
    try:
        return arrange(str(workdir), rows)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        found = f"rows that do not fit together ({type(error).__name__}: {error})"
        raise DataError(str(path), found, "predictions as they were written") from None


def arrange(name: str, rows: list[dict[str, Any]]) -> Predictions:
    """Makes arrays of rows; errors of Python for rows that are not like the first."""
    hashes = [row["hash"] for row in rows]
    if "score" in rows[0]:
        labels, scores = ([float(row[k]) for row in rows] for k in ("label", "score"))
        return Predictions(name, hashes, np.array(labels), np.array(scores), ())
    classes = tuple(rows[0]["probabilities"])
    places = {label: place for place, label in enumerate(classes)}
    predicted = [[row["probabilities"][label] for label in classes] for row in rows]
    if isinstance(rows[0]["label"], list):
        labels_ = np.zeros((len(rows), len(classes)))
        for number, row in enumerate(rows):
            labels_[number, [places[label] for label in row["label"]]] = 1
    else:
        labels_ = np.array([places[row["label"]] for row in rows])
    return Predictions(name, hashes, labels_, np.array(predicted, np.float64), classes)
