"""Command: gives the log-probability of texts under the model of a run.

python -m lm.score --workdir=DIR --input=FILE.jsonl|FILE.txt|- [--output=FILE.jsonl]
"""

import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm.config import resolve as configs
from lm.config import schema
from lm.config.flags import (
    UNEVALUATED,
    Parser,
    add_run,
    describe_fields,
    flag,
    which_step,
)
from lm.errors import ConfigError, DataError
from lm.host import files, inputs, process, timing
from lm.host.inputs import Line
from lm.workdir import outputs
from lm.workdir.lines import wrap

if TYPE_CHECKING:
    from lm.data.scoring import Settings, Text
    from lm.evaluators.likelihood import Scorer

USAGE = """python -m lm.score --workdir=DIR [--checkpoint=latest|best|STEP]
    --input=FILE.jsonl|FILE.txt|- [--output=FILE.jsonl] [OPTION ...]

Scores texts: of each its log-probability in nats, perplexity, bits per byte,
and whether each token is the most probable one. A row of a .jsonl file has a
"text", or a "context" and a "continuation", or for an encoder-decoder a
"source" and a "target"; any other file has a text on each line. A row of the
output is that of the input with the figures. A masked model's figure is the
pseudo-log-likelihood, which "measure" says. A text that the model cannot make
has "log_prob": null, and a grammar gives no figures of single tokens."""

JSONL = (".jsonl", ".ndjson")
EXAMPLE = '{"text": "..."}'
CHUNK = 512  # texts that are scored together; a stopped command repeats them


class Asked(NamedTuple):
    """A row of the input, and where it stands."""

    where: str
    row: dict[str, Any]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags, options = parse(argv)
    workdir = Path(flags.workdir)
    config = configs.of_run(workdir, UNEVALUATED)
    asked = read(flags.input, flags.format)
    process.platform_setup()

    from lm import run as runs
    from lm.data.scoring import Settings
    from lm.evaluators.likelihood import text_of

    runs.check(config, {"score"}, "lm.score")
    objective = runs.open_objective(config)
    texts = [text_of(one.row, one.where, objective) for one in asked]
    opened = runs.open_run(
        workdir, flags.checkpoint, config=config, weights=flags.weights, note=note
    )
    made = {**options, "step": opened.step, "per_token": flags.per_token}
    made |= {"weights": "trained"} if flags.weights == "trained" else {}
    path = Path(flags.output) if flags.output else None
    totals = Totals()
    with opened.on_mesh():
        scorer = runs.make_scorer(opened.corpus, opened.program, opened.params)
        settings = Settings(**options)
        for figures in score(
            scorer, asked, texts, settings, path, made, flags.per_token
        ):
            totals.add(figures)
    note(totals.line())
    return 0


def note(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """Parses the flags; returns them, and apart from them the settings of scoring.

    The settings are the fields of lm.data.scoring.Settings, which is read and not
    imported: a wrong flag is answered before jax is loaded.

    Raises:
      ConfigError: a flag is unknown or out of bounds.
    """
    file = Path(__file__).parent / "data" / "scoring.py"
    fields = schema.read_class(file, "Settings", file.parents[1])
    parser = Parser("lm.score", USAGE)
    add_run(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="the texts, .gz too; - is standard input",
    )
    parser.add_argument(
        "--format",
        choices=("jsonl", "text"),
        help="of the input: a JSON object or a text on each line (default: jsonl "
        "where the name says so, else text)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a JSONL file, which the same command again continues (default: the "
        "terminal)",
    )
    parser.add_argument(
        "--per-token",
        action="store_true",
        help="add each token and its log-probability",
    )
    parser.add_fields(fields, describe_fields(file, "Settings"))
    flags = parser.parse_args(argv)
    options = {
        name: field.default
        if (given := getattr(flags, name)) is None
        else schema.check(field, schema.Text(given), flag(name))
        for name, field in fields.items()
    }
    flags.checkpoint = which_step(flags.checkpoint)
    if flags.output and not isinstance(
        outputs.form_of(Path(flags.output)), outputs.Json
    ):
        raise ConfigError("--output", repr(flags.output), "a name that ends in .jsonl")
    return flags, options


def read(name: str, form: str | None) -> list[Asked]:
    """Reads the input: the fields of each line, and where it stands.

    Raises:
      DataError: no text, or a line that is no JSON object.
    """
    lines = inputs.read_lines(None if name == "-" else Path(name), note, "a text")
    plain = Path(name.removesuffix(".gz")).suffix.lower() not in JSONL
    if form == "text" or (form is None and plain):
        asked = [Asked(line.where, {"text": line.text}) for line in lines]
    else:
        asked = [Asked(ln.where, inputs.parse_object(ln, EXAMPLE)) for ln in lines]
    if not asked:
        raise DataError(name, "no text", "at least one")
    return asked


def score(
    scorer: "Scorer",
    asked: Sequence[Asked],
    texts: Sequence["Text"],
    settings: "Settings",
    path: Path | None,
    made: Mapping[str, Any],
    per_token: bool,
) -> Iterator[dict[str, Any]]:
    """Writes a row for each text, and yields it; also the rows that were there.

    Args:
      path: of the output, None: standard output.
      made: the settings that determine the rows.

    Raises:
      DataError: the output was made with other settings or texts, or a text is too
        long.
    """
    from lm.evaluators.likelihood import text_of

    there: list[dict[str, Any]] = []

    def check(number: int, raw: bytes) -> None:
        where, text = f"{path}:{number}", texts[number - 1]
        line = Line(where, files.decode(raw, where, DataError))
        row = inputs.parse_object(line, "a row of lm.score")
        old = text_of(row, where, scorer.objective)
        if (old.context, old.text) != (text.context, text.text):
            expected = f"{text.text[:40]!r}, as in {text.where}"
            raise DataError(where, f"text {old.text[:40]!r}", expected, outputs.FIX)
        there.append(row)

    output, kept = None, 0
    if path is not None:
        output = outputs.Output(
            path, made, len(asked), check=check, note=note, what="texts"
        )
        kept = output.kept
    yield from there
    starts = range(kept - kept % CHUNK, len(asked), CHUNK)
    for first in timing.with_progress(
        starts, len(starts), lambda text: note(f"{CHUNK} texts at a time: {text}")
    ):
        part = slice(first, first + CHUNK)
        found = scorer.figures(texts[part], settings, per_token=per_token)
        for number, (one, figure) in enumerate(zip(asked[part], found), first):
            if number < kept:
                continue
            row = one.row | figure
            if output:
                output.write(row)
            else:
                sys.stdout.write(outputs.FORMS[".jsonl"].line(row).decode())
            yield row
        if output:
            output.sync()
        else:
            sys.stdout.flush()
    if output:
        output.close()


class Totals:
    """The figures of all texts together."""

    SUMS = ("tokens", "bytes", "unknown", "unknown_log_prob", "cut", "unscored")

    def __init__(self) -> None:
        self.texts = self.impossible = 0
        self.log_prob, self.sums = 0.0, dict.fromkeys(self.SUMS, 0.0)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row of the output."""
        self.texts += 1
        if row["log_prob"] is None:
            self.impossible += 1
            return
        self.log_prob += row["log_prob"]
        for name in self.sums:
            self.sums[name] += math.nan if row[name] is None else row[name]

    def line(self) -> str:
        """Returns a line for the user."""
        tokens, unknown = self.sums["tokens"], self.sums["unknown"]
        parts = [f"{self.texts:,} texts", f"{tokens:,.0f} tokens"]
        parts.append(f"log-probability {self.log_prob:,.2f}")
        if tokens:
            parts.append(f"perplexity {perplexity(self.log_prob, tokens):,.2f}")
        if size := self.sums["bytes"]:
            bits = -self.log_prob / math.log(2) / size
            parts.append(f"{bits:.4f} bits per byte")
        if unknown and tokens > unknown:
            known = self.log_prob - self.sums["unknown_log_prob"]
            rest = perplexity(known, tokens - unknown)
            without = "" if math.isnan(rest) else f" (perplexity {rest:,.2f} without)"
            parts.append(f"{unknown:,.0f} unknown{without}")
        for name, what in (("cut", "tokens of contexts cut"), ("unscored", "unscored")):
            if self.sums[name]:
                parts.append(f"{self.sums[name]:,.0f} {what}")
        if self.impossible:
            parts.append(f"{self.impossible:,} impossible texts left out of the sums")
        return wrap(parts, ", ")


def perplexity(log_prob: float, tokens: float) -> float:
    """Returns exp(-log_prob / tokens), at most e to the 700: a float ends at 709."""
    return math.exp(min(-log_prob / tokens, 700.0))


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
