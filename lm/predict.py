"""Command: predicts the labels of new texts with the model of a run.

python -m lm.predict --workdir=DIR TEXT ... | --input=FILE --output=FILE
"""

import functools
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from lm import records
from lm.config import resolve as configs
from lm.config.flags import UNEVALUATED, Parser, add_run, which_step
from lm.errors import ConfigError
from lm.host import process
from lm.workdir import identity, outputs

USAGE = """python -m lm.predict --workdir=DIR [--checkpoint=latest|best|STEP]
    TEXT ... | --input=FILE|-
    [--output=FILE.jsonl|.csv|.tsv] [OPTION ...]

Predicts labels, classes or numbers for texts without one, in the order given,
or answers to questions, each with a tab between it and its context.
A row has the fields that are kept, the prediction, and `truncated`, how many
tokens of its texts did not fit. The same command again continues an output."""
# The files of the GLUE benchmark's server (Wang et al. 2019).
GLUE = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE"]
GLUE += ["WNLI", "AX"]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags = parse(argv)
    workdir = Path(flags.workdir)
    config = configs.of_run(workdir, UNEVALUATED)
    process.platform_setup()

    from lm import ask
    from lm import run as runs

    runs.check(config, {"answers"}, "lm.predict")
    objective = runs.open_objective(config).unlabelled()
    fields = ask.fields_of(objective, flags.what, "--what")
    source = records.open_source(flags, objective.columns())
    total = records.count(source)
    opened = runs.open_run(
        workdir,
        flags.checkpoint,
        config=config,
        weights=flags.weights,
        note=records.note,
    )
    asker = ask.open_asker(opened, flags.batch_size)
    keep = objective.columns() if flags.keep is None else flags.keep
    made = {
        "batch_size": flags.batch_size,
        "fields": fields,
        "format": flags.format,
        "input": source.fingerprint()[:16],
        "keep": [*keep],
        "run": None if (own := identity.read(workdir)) is None else own.run,
        "step": opened.step,
        "weights": flags.weights,
    }
    rows = functools.partial(records.rows, asker.answers, source, total, keep, fields)
    if flags.format == "glue":
        rows = functools.partial(glue_rows, rows, fields[0])
    with opened.on_mesh():
        if flags.output is None:
            records.show(rows(0))
        else:
            records.write(Path(flags.output), made, total, asker.chunk, rows)
    return 0


def parse(argv: list[str]) -> Namespace:
    """Parses the flags.

    Raises:
      ConfigError: a flag is unknown, wrong or excludes another one.
    """
    parser = Parser("lm.predict", USAGE)
    add_run(parser)
    records.add_flags(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a file for the rows, .jsonl, .csv or .tsv, which the same command again "
        "continues (default: JSON lines on the terminal)",
    )
    parser.add_argument(
        "--what",
        metavar="WHAT",
        help="what is predicted, as the objective offers it, such as labels, "
        "probabilities or logits (default: the first that it offers)",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "glue"),
        default="auto",
        help="the form of --output: auto, by its name, or glue, the columns index and "
        "prediction in a file named as GLUE wants it, such as CoLA.tsv (default: auto)",
    )
    flags = parser.parse_intermixed_args(argv)
    records.check_flags(flags)
    flags.checkpoint = which_step(flags.checkpoint)
    if flags.output is not None:
        check_output(Path(flags.output), flags.format)
    elif flags.format == "glue":
        raise ConfigError("--format", "glue without --output", "a file for the rows")
    return flags


def check_output(path: Path, form: str) -> None:
    """Raises a ConfigError for an output whose name does not say its form."""
    if form == "glue" and path.name not in [f"{name}.tsv" for name in GLUE]:
        expected = f"a file named {', '.join(GLUE)}, each with .tsv after it"
        raise ConfigError("--output", repr(path.name), expected)
    outputs.form_of(path)


def glue_rows(rows: records.From, field: str, first: int) -> Iterator[records.Row]:
    """Yields rows of a file for GLUE: a label, or a number with three digits."""
    for number, row in enumerate(rows(first), first):
        found = row[field]
        text = f"{found:.3f}" if isinstance(found, float) else found
        yield {"index": number, "prediction": text}


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
