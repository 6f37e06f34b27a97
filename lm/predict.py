"""Command: predicts the labels of new texts with the model of a run.

python -m lm.predict --workdir=DIR TEXT ... | --input=FILE --output=FILE
"""

import itertools
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config import resolve as configs
from lm.config import schema
from lm.config.flags import UNEVALUATED, Parser, add_run, which_step
from lm.data import inputs
from lm.data.sources.base import Source
from lm.errors import ConfigError
from lm.host import process, timing
from lm.host.inputs import Line, read_lines
from lm.workdir import identity, outputs

if TYPE_CHECKING:
    from lm.ask import Asker

USAGE = """python -m lm.predict --workdir=DIR [--checkpoint=latest|best|STEP]
    TEXT ... | --input=FILE|-
    [--output=FILE.jsonl|.csv|.tsv] [OPTION ...]

Predicts labels, classes or numbers for texts without one, in the order given.
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
    source = open_source(flags, objective.columns())
    total = sum(1 for _ in ask.good(source.records()))
    opened = runs.open_run(
        workdir, flags.checkpoint, config=config, weights=flags.weights, note=note
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
    with opened.on_mesh():
        if flags.output is None:
            for row in rows(asker, source, keep, fields, total, 0):
                print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            write(asker, source, keep, fields, total, flags, made)
    return 0


def note(line: str) -> None:
    """Writes a line to standard error."""
    if process.is_primary():
        print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> Namespace:
    """Parses the flags.

    Raises:
      ConfigError: a flag is unknown, wrong or excludes another one.
    """
    parser = Parser("lm.predict", USAGE)
    add_run(parser)
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="TEXT",
        help="a text; of a model of pairs, two with a tab between them (default: the "
        "lines of standard input)",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="a file of records, .jsonl, .csv, .tsv or .txt (a text on each line), or "
        "with .gz after it; - is standard input (default: none)",
    )
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
        "--columns",
        default="",
        metavar="FIELD=NAME[,...]",
        help="the columns of --input by the fields of the objective, where they differ "
        "(default: the same names)",
    )
    parser.add_argument(
        "--no-header",
        action="store_true",
        help="the first line of a table is a record; --columns=NAME,... names all of "
        "its columns in their order",
    )
    parser.add_argument(
        "--keep",
        metavar="NAME[,...]",
        help="columns of --input that a row repeats, or nothing (default: the texts)",
    )
    parser.add_argument(
        "--batch-size",
        default="32",
        metavar="SIZE",
        help="texts computed at a time (a whole number from 1; default: 32)",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "glue"),
        default="auto",
        help="the form of --output: auto, by its name, or glue, the columns index and "
        "prediction in a file named as GLUE wants it, such as CoLA.tsv (default: auto)",
    )
    flags = parser.parse_intermixed_args(argv)
    size = schema.literal(flags.batch_size)
    if type(size) is not int or not 1 <= size <= 1 << 20:
        expected = "a whole number from 1 to 1048576"
        raise ConfigError("--batch-size", flags.batch_size, expected)
    flags.batch_size = size
    flags.checkpoint = which_step(flags.checkpoint)
    if flags.prompts and flags.input:
        raise ConfigError("flags", "texts and --input", "one of them")
    file = flags.input not in (None, "-")
    for name in ("columns", "keep", "no_header"):
        if getattr(flags, name) and not file:
            found = f"--{name.replace('_', '-')} without a file"
            raise ConfigError("flags", found, "--input=FILE, whose columns it means")
    flags.keep = None if flags.keep is None else names_of(flags.keep, "--keep")
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


def names_of(text: str, where: str) -> list[str]:
    """Parses names that commas part, each of which may occur once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len({*names}) < len(names):
        raise ConfigError(where, repr(text), "each name once")
    return names


def open_source(flags: Namespace, columns: tuple[str, ...]) -> Source:
    """Opens what the flags ask about.

    Args:
      columns: the fields of a record that the objective reads.

    Raises:
      ConfigError, DataError: a file or a column is missing or of no known kind.
    """
    if flags.prompts:
        lines = [Line(f"text {n}", text) for n, text in enumerate(flags.prompts, 1)]
        return inputs.of_lines(lines, columns)
    if flags.input in (None, "-"):
        return inputs.of_lines(read_lines(None, note), columns)
    given = [part.partition("=") for part in names_of(flags.columns, "--columns")]
    named = {field.strip(): name.strip() or field.strip() for field, _, name in given}
    if flags.no_header:
        if not named:
            expected = "--columns=NAME,..., the names of all columns in their order"
            raise ConfigError("flags", "--no-header alone", expected)
        return inputs.open_file(flags.input, named, header=False)
    for field in named:
        if field not in columns:
            raise schema.no_such("--columns", field, columns)
    wanted = {field: named.get(field, field) for field in columns}
    own = {name: name for name in flags.keep or () if name not in wanted}
    return inputs.open_file(flags.input, wanted | own)


def rows(
    asker: "Asker",
    source: Source,
    keep: "list[str] | tuple[str, ...]",
    fields: list[str],
    total: int,
    first: int,
) -> Iterator[dict[str, Any]]:
    """Yields the row of each record, from number `first` on."""
    from lm import ask

    records = itertools.islice(ask.good(source.records()), first, None)
    found = timing.with_progress(asker.answers(records), total - first, note)
    for record, answer in found:
        own = {name: record.fields[name] for name in keep}
        yield own | {name: answer[name] for name in fields}


def write(
    asker: "Asker",
    source: Source,
    keep: "list[str] | tuple[str, ...]",
    fields: list[str],
    total: int,
    flags: Namespace,
    made: dict[str, Any],
) -> None:
    """Writes a row for each record to a file, after the rows that it already has.

    Raises:
      DataError: the file was made with other settings, or of another input.
    """
    path, glue = Path(flags.output), flags.format == "glue"
    form = outputs.form_of(path)
    if not process.is_primary():
        for _ in rows(asker, source, keep, fields, total, 0):
            pass
        return
    file = outputs.Output(path, made, total, form=form, note=note, what="records")
    first = file.kept - file.kept % asker.chunk
    found = rows(asker, source, keep, fields, total, first)
    if file.kept == total:
        found = iter(())
    for n, row in enumerate(found, first):
        if n >= file.kept:
            file.write(glue_row(n, row[fields[0]]) if glue else row)
        if (n + 1) % asker.chunk == 0:
            file.sync()
    file.sync()
    file.close()


def glue_row(number: int, prediction: Any) -> dict[str, Any]:
    """Returns a row of a file for GLUE: a label, or a number with three digits."""
    text = f"{prediction:.3f}" if isinstance(prediction, float) else prediction
    return {"index": number, "prediction": text}


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
