"""Part: the records that a command is asked about, and the rows of its answers."""

import itertools
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config import schema
from lm.config.flags import Parser
from lm.data import inputs
from lm.data.sources.base import Record, Source
from lm.errors import ConfigError, DataError
from lm.host import process, timing
from lm.host.inputs import Line, read_lines
from lm.workdir import outputs

Row = dict[str, Any]
Answers = Iterable[tuple[Record, Row]]
From = Callable[[int], Iterator[Row]]  # the number of a record -> the rows from there


def note(line: str) -> None:
    """Writes a line to standard error."""
    if process.is_primary():
        print(line, file=sys.stderr, flush=True)


def add_flags(parser: Parser) -> None:
    """Adds the flags that say what is asked about."""
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="TEXT",
        help="a text; of a model of two, both with a tab between them (default: the "
        "lines of standard input)",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="a file of records, .jsonl, .csv, .tsv or .txt (a text on each line), or "
        "with .gz after it; - is standard input (default: none)",
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


def check_flags(flags: Namespace) -> None:
    """Checks the flags of `add_flags`; parses --batch-size and --keep.

    Raises:
      ConfigError: a flag is wrong or excludes another one.
    """
    flags.batch_size = whole_number("--batch-size", flags.batch_size)
    if flags.prompts and flags.input:
        raise ConfigError("flags", "texts and --input", "one of them")
    file = flags.input not in (None, "-")
    for name in ("columns", "keep", "no_header"):
        if getattr(flags, name) and not file:
            found = f"--{name.replace('_', '-')} without a file"
            raise ConfigError("flags", found, "--input=FILE, whose columns it means")
    flags.keep = None if flags.keep is None else names_of(flags.keep, "--keep")


def whole_number(where: str, text: str) -> int:
    """Parses a number from 1 on, which no memory would be too small for."""
    number = schema.literal(text)
    if type(number) is not int or not 1 <= number <= 1 << 20:
        raise ConfigError(where, text, "a whole number from 1 to 1048576")
    return number


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


def good(records: Iterable[Record | DataError]) -> Iterator[Record]:
    """Yields the records; raises the error of one that cannot be read."""
    for record in records:
        if isinstance(record, DataError):
            raise record
        yield record


def count(source: Source) -> int:
    """Counts the records, before the first of them is answered.

    Raises:
      DataError: one of them cannot be read.
    """
    return sum(1 for _ in good(source.records()))


def rows(
    answers: Callable[[Iterable[Record]], Answers],
    source: Source,
    total: int,
    keep: Sequence[str],
    fields: Sequence[str],
    first: int,
) -> Iterator[Row]:
    """Yields the row of each record, from number `first` on.

    Args:
      answers: records -> each with its answer, as of `lm.ask.Asker`.
      total: how many records there are.
      keep: the columns of a record that its row repeats.
      fields: of an answer that its row has.
    """
    records = itertools.islice(good(source.records()), first, None)
    found = timing.with_progress(answers(records), total - first, note)
    for record, answer in found:
        own = {name: record.fields[name] for name in keep}
        yield own | {name: answer[name] for name in fields}


def show(rows: Iterable[Row]) -> None:
    """Prints rows as JSON."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)


def write(
    path: Path,
    made: dict[str, Any],
    total: int,
    chunk: int,
    rows: From,
    form: outputs.Form | None = None,
) -> None:
    """Writes a row for each record to a file, after the rows that it already has.

    Args:
      made: the settings that determine the rows.
      total: how many records there are.
      chunk: records that are computed together.
      form: of the file; None is told by its name.

    Raises:
      DataError: the file was made with other settings, or of another input.
    """
    if not process.is_primary():
        for _ in rows(0):
            pass
        return
    form = form or outputs.form_of(path)
    file = outputs.Output(path, made, total, form=form, note=note, what="records")
    first = file.kept - file.kept % chunk
    found = iter(()) if file.kept == total else rows(first)
    for n, row in enumerate(found, first):
        if n >= file.kept:
            file.write(row)
        if (n + 1) % chunk == 0:
            file.sync()
    file.sync()
    file.close()
