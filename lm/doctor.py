"""Command: looks in the data of a config for what would make its results wrong.

python -m lm.doctor --config=FILE[:ARG] [--workdir=DIR] [--accept=CHECK,...]
"""

import dataclasses
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lm.checks import datasets
from lm.checks.datasets import Finding, Set
from lm.config import match
from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.config.resolve import Config
from lm.data.corpus import Corpus
from lm.data.pipeline import Data
from lm.data.stream import Stream
from lm.errors import DataError
from lm.hf import source
from lm.host import lock, process, storage

USAGE = """python -m lm.doctor --config=FILE[:ARG] [--config.a.b=VALUE]
    [--workdir=DIR] [--accept=CHECK[,CHECK]]

Reads the training set and the sets of all evaluations, in bounded memory, and
prints for each check what it found:

lengths       the tokens of rows
cut           what did not fit into a row
unknown       unknown tokens; wrong above 5%
blank         records without text
labels        how often each occurs; wrong: one that is never trained on
leakage       tokens that give a label away: 99% of the rows with it, at least
              20, have one label, and 20% of that label's rows have it
overlap       texts of an evaluation that are trained on, to the word or nearly
              (a Jaccard similarity of 0.8 of runs of three words, by MinHash);
              wrong above 1% of the evaluation's words
repeated      texts that a set has several times
conflicts     equal texts with different labels; wrong above 5% of the records
characters    signs of a wrong encoding; wrong above 5% of lost or misread ones

Texts are compared by their words, without case and punctuation. The report is
kept in the workdir, as doctor.json. Exit code 3 if something is wrong, else 0."""
CHECKS = (
    *("lengths", "cut", "unknown", "blank", "labels", "leakage", "overlap"),
    *("repeated", "conflicts", "characters"),
)
REPORT = "doctor.json"
WIDTH = 80  # columns


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = Parser("lm.doctor", USAGE)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="the config file and its argument",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the folder of the run, which has the rows and the report (default: "
        "runs/<config name>[-<arg>])",
    )
    parser.add_argument(
        "--accept",
        default="",
        metavar="CHECK[,CHECK]",
        help="checks that are wrong and may be (default: none)",
    )
    flags, overrides = parser.parse_known_args(argv)
    accepted = [name for name in flags.accept.split(",") if name]
    for name in accepted:
        if name not in CHECKS:
            raise configs.no_such("--accept", name, CHECKS)
    workdir = Path(flags.workdir or configs.default_workdir(flags.config))
    config = configs.load(flags.config, overrides, fill=source.with_shape(workdir))
    storage.check_directory(workdir)
    source.check(config, workdir)
    return examine(config, workdir, accepted)


def examine(config: Config, workdir: Path, accepted: list[str]) -> int:
    """Runs the checks, prints and keeps what they find; returns the exit code.

    Args:
      accepted: checks whose findings do not count as wrong.
    """
    process.platform_setup()

    from lm import run as runs

    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    runs.check(config)
    config = runs.with_tokenizer(config, workdir)
    with lock.of_workdir(workdir, note):
        findings = []
        for finding in diagnose(runs.open_corpus(config, workdir, note), workdir, note):
            if finding.verdict == "wrong" and finding.check in accepted:
                finding = dataclasses.replace(finding, verdict="note")
            print(shown(finding), flush=True)
            findings.append(finding)
        storage.write_json(workdir / REPORT, [dataclasses.asdict(f) for f in findings])
    wrong = [f"{f.check} of {f.of}" for f in findings if f.verdict == "wrong"]
    if not wrong:
        print(f"nothing wrong was found ({workdir / REPORT})")
        return 0
    raise DataError(
        "data",
        f"wrong: {', '.join(wrong)}",
        "data whose results mean something",
        "repair them, or accept a check (--accept=CHECK); what was found is kept in "
        f"{workdir / REPORT}",
    )


def diagnose(
    corpus: Corpus, folder: Path, note: Callable[[str], None]
) -> Iterator[Finding]:
    """Yields the findings of all checks, those of the training set first.

    Args:
      folder: takes temporary files.
      note: takes lines on the progress.
    """
    config = corpus.config

    def a_set(name: str, section: Config, changes: Config, stream: Stream) -> Set:
        data = configs.build(Data, section)
        objective = match.changed(corpus.objective, changes)
        return Set(name, data, objective, corpus.codec, config.seq_len, stream)

    train = a_set(datasets.TRAINING, config.data, Config(), corpus.stream)
    evals: dict[str, Set] = {}
    for name, stream in corpus.evals.items():
        section = config.evals[name]
        same = f"{section.data} {section.objective}"
        if same in evals:
            note(f"{name}: the same set as {evals[same].name}")
        else:
            evals[same] = a_set(name, section.data, section.objective, stream)
    for each in (train, *evals.values()):
        yield from datasets.rows(each)
        yield from datasets.balance(each, train)
        if each is train:
            yield from datasets.telling(train)
        else:
            yield datasets.overlap(each, train, note)
        yield from datasets.texts(each, folder, note)


def shown(finding: Finding) -> str:
    """Formats a finding for the terminal, in 80 columns."""
    mark = {"ok": "ok", "note": "note", "wrong": "WRONG"}[finding.verdict]
    head = f"{finding.of:<10} {finding.check:<10} {mark:<5}  "
    indent = " " * len(head)
    lines = textwrap.wrap(finding.text, WIDTH - len(indent))
    for example in finding.examples:
        lines += textwrap.wrap(f"- {example}", WIDTH - len(indent))
    if "rows" in finding.figures:
        lines += histogram(finding.figures["up to"], finding.figures["rows"])
    return "\n".join(
        (head if n == 0 else indent) + line for n, line in enumerate(lines or [""])
    )


def histogram(edges: Sequence[int], counts: Sequence[int]) -> Iterator[str]:
    """Yields a line for each range of lengths, with a bar of its share of the rows."""
    width = len(f"{edges[-1]:,}")
    for edge, count in zip(edges, counts):
        bar = "#" * round(30 * count / max(sum(counts), 1))
        yield f"to {edge:>{width},} {count:>9,} {bar}".rstrip()


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
