"""Command: makes vectors of texts with an encoder, as a NumPy array or JSON lines.

python -m lm.embed --workdir=RUN TEXT ... | --input=FILE --output=FILE.npy
"""

import functools
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from lm import records
from lm.config.flags import Parser, add_run, which_step
from lm.data.sources.base import Record
from lm.errors import ConfigError
from lm.host import process
from lm.workdir import outputs

USAGE = """python -m lm.embed --workdir=RUN|hf:DIR [--checkpoint=latest|best|STEP]
    TEXT ... | --input=FILE|-
    [--output=FILE.npy|.jsonl] [OPTION ...]

Makes a vector of each text, in the order given, with the model of a run or of a
Hugging Face directory, which may be of sentence-transformers. FILE.npy is an
array of float32, (texts, dimensions); with --keep, FILE.npy.jsonl beside it has
a row for each text. The same command again continues an output."""
FIELDS = ("embedding", "truncated")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags = parse(argv)
    process.platform_setup()

    from lm import embedder

    config = embedder.config_of(flags.workdir)
    columns = embedder.objective_of(config, flags.pooling).columns()
    source = records.open_source(flags, columns)
    total = records.count(source)
    opened = embedder.open_run(
        flags.workdir,
        flags.checkpoint,
        config=config,
        weights=flags.weights,
        note=records.note,
    )
    made = embedder.open_embedder(
        opened,
        pooling=flags.pooling,
        dims=flags.dims,
        normalize=False if flags.no_normalize else None,
        batch_size=flags.batch_size,
    )
    path = None if flags.output is None else Path(flags.output)
    matrix = path is not None and path.suffix == ".npy"
    keep = flags.keep or () if matrix or flags.keep is not None else columns
    settings = {
        "batch_size": flags.batch_size,
        "dims": flags.dims,
        "input": source.fingerprint()[:16],
        "keep": [*keep],
        "no_normalize": flags.no_normalize,
        "pooling": flags.pooling,
        "run": embedder.name_of(flags.workdir),
        "step": opened.step,
        "weights": flags.weights,
    }
    own = functools.partial(records.rows, without_answers, source, total, keep, ())
    kept = () if matrix else keep
    rows = functools.partial(records.rows, made.vectors, source, total, kept, FIELDS)
    rows = functools.partial(with_note, rows, config.seq_len)
    chunk = made.asker.chunk
    with opened.on_mesh():
        if path is None:
            records.show(as_json(rows, 0))
        elif matrix:
            if keep:
                beside = path.with_name(f"{path.name}.jsonl")
                records.write(beside, settings, total, chunk, own)
            form = outputs.Matrix("embedding", total)
            records.write(path, settings, total, chunk, rows, form)
        else:
            in_json = functools.partial(as_json, rows)
            records.write(path, settings, total, chunk, in_json)
    return 0


def parse(argv: list[str]) -> Namespace:
    """Parses the flags.

    Raises:
      ConfigError: a flag is unknown, wrong or excludes another one.
    """
    parser = Parser("lm.embed", USAGE)
    add_run(parser)
    records.add_flags(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a file for the vectors, .npy or .jsonl, which the same command again "
        "continues (default: JSON lines on the terminal)",
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls", "max", "last"),
        help="the vector of a text, from the states of its tokens (default: as the run "
        "was trained; mean where it was trained for something else)",
    )
    parser.add_argument(
        "--dims",
        metavar="NUMBER",
        help="the first so many dimensions are given (default: all)",
    )
    parser.add_argument(
        "--no-normalize",
        action="store_true",
        help="keep the lengths of vectors (default: as the run was trained; length 1 "
        "where it was trained for something else)",
    )
    flags = parser.parse_intermixed_args(argv)
    records.check_flags(flags)
    flags.checkpoint = which_step(flags.checkpoint)
    if flags.dims is not None:
        flags.dims = records.whole_number("--dims", flags.dims)
    if flags.output is not None:
        suffix = Path(flags.output).suffix
        if suffix not in (".npy", ".jsonl"):
            expected = "a name that ends in .npy or .jsonl"
            raise ConfigError("--output", repr(flags.output), expected)
    return flags


def without_answers(given: Iterable[Record]) -> records.Answers:
    """Yields each record with no answer."""
    return ((record, {}) for record in given)


def as_json(rows: records.From, first: int) -> Iterator[records.Row]:
    """Yields rows with their vectors as JSON has them."""
    from lm.objectives.contrastive import numbers

    for row in rows(first):
        yield row | {"embedding": numbers(row["embedding"])}


def with_note(rows: records.From, length: int, first: int) -> Iterator[records.Row]:
    """Yields the rows, and notes at the end how many texts were cut."""
    cut = 0
    for row in rows(first):
        cut += row["truncated"] > 0
        yield row
    if cut:
        records.note(f"{cut} texts are cut to {length} tokens (seq_len)")


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
