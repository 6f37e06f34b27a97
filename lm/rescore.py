"""Command: chooses among the hypotheses of n-best lists by language models.

python -m lm.rescore --dev=FILE --test=FILE --lm=WORKDIR [--output=FILE.jsonl]
"""

import functools
import json
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.errors import ConfigError, DataError
from lm.formats import nbest
from lm.formats.nbest import Utterance
from lm.host import inputs, process, storage, timing

if TYPE_CHECKING:
    from lm.metrics.rescoring import Lists
    from lm.metrics.speech import Errors

USAGE = """python -m lm.rescore --dev=LIST --test=LIST
    (--lm=WORKDIR | --scores=DEV.jsonl,TEST.jsonl) ... [--output=FILE.jsonl]

Rescores n-best lists: the score of a hypothesis becomes

    its own + a x log p of each language model in nats + b x its words

with the a and b that make the fewest word errors on --dev; those of --test are
then chosen. Of equal weights and hypotheses the first is taken. Prints a JSON
object: the weights, and for both lists the errors of the first hypotheses, of
the chosen ones and of the best possible ones (oracle), with an interval.

A LIST is a file of lines {"id": "...", "ref": "...", "hyps": [[score, "text"],
...]}; a .json of ESPnet, {ID: {"ref": "...", "hyp_1": {"score": ..., "text":
"..."}}}; or files of Kaldi, TEXTS,SCORES[,REFERENCES]."""

# Scoring runs no evaluation; one that cannot run here is no reason to refuse.
UNEVALUATED = [
    "--config.evals={}",
    "--config.checkpoint.best=none",
    "--config.stop.metric=none",
]
CHUNK = 4096  # hypotheses that are scored together
FORMS = ("none", "lower", "plain")


class Set(NamedTuple):
    """An n-best list that is being rescored.

    Attributes:
      name: "dev" or "test".
      models: for each language model, log p of each hypothesis of each utterance.
    """

    name: str
    utterances: list[Utterance]
    models: list[list[np.ndarray]]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags = parse(argv)
    lists = {name: nbest.read(getattr(flags, name), note) for name in flags.lists}
    nbest.require_references(lists.get("dev", []), "give a list with references")
    if not flags.unlabelled:
        fix = "give --unlabelled, and no errors are counted"
        nbest.require_references(lists["test"], fix)
    process.platform_setup()
    models: dict[str, list[Any]] = {name: [] for name in lists}
    for kind, place in flags.models:
        given = place.split(",")
        for name, file in zip(lists, given if kind == "scores" else ()):
            models[name].append(read_scores(file, lists[name]))
        for name, own in score(Path(place), lists, flags) if kind == "lm" else ():
            models[name].append(own)
    sets = [Set(name, lists[name], models[name]) for name in lists]
    found, rows = rescore(sets, flags)
    if flags.output:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_text(Path(flags.output), text)
    print(json.dumps(found, indent=1))
    return 0


def note(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> Namespace:
    """Parses the flags.

    Raises:
      ConfigError: a flag is unknown, out of bounds or contradicts another.
    """
    parser = Parser("lm.rescore", USAGE)
    parser.add_argument(
        "--dev",
        metavar="LIST",
        help="the list by which weights are tuned (default: none, with --weights)",
    )
    parser.add_argument(
        "--test", required=True, metavar="LIST", help="the list to rescore"
    )
    for kind, metavar, text in (
        ("lm", "WORKDIR", "a run whose model scores the hypotheses, ends included"),
        ("scores", "FILE[,FILE]", "outputs of lm.score for dev and test"),
    ):
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar=metavar,
            help=f"{text}; may be given several times (default: none)",
        )
    parser.add_argument(
        "--grid",
        default="0:1:0.05",
        metavar="FIRST:LAST:STEP",
        help="the weights a to try (default: 0:1:0.05)",
    )
    parser.add_argument(
        "--word-grid",
        default="0:6:0.5",
        metavar="FIRST:LAST:STEP",
        help="the weights b to try (default: 0:6:0.5)",
    )
    parser.add_argument(
        "--refine",
        default="4",
        metavar="ROUNDS",
        help="how often the step of the grid is halved around its best point (a whole "
        "number from 0 to 16; default: 4)",
    )
    parser.add_argument(
        "--weights",
        metavar="A,...,B",
        help="the weights of each --lm, each --scores and the words, not tuned "
        "(default: tuned on --dev)",
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="none",
        help="of texts in which words are compared: as they are, in lower case, or "
        "plain: in lower case without marks (default: none)",
    )
    parser.add_argument(
        "--unlabelled",
        action="store_true",
        help="the list to rescore has no references",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a JSONL file for the chosen hypotheses (default: none)",
    )
    flags = parser.parse_args(argv)
    models = [("lm", place) for place in flags.lm]
    models += [("scores", place) for place in flags.scores]
    flags.models = models
    flags.lists = ["dev", "test"] if flags.dev else ["test"]
    for kind, place in models:
        if kind == "scores" and len(place.split(",")) != len(flags.lists):
            expected = f"a file for each of {', '.join(flags.lists)}"
            raise ConfigError("--scores", place, expected)
    flags.grids = [numbers("--grid", flags.grid)] * len(models)
    flags.grids += [numbers("--word-grid", flags.word_grid)]
    points = math.prod(map(len, flags.grids))
    if points > 200_000:
        expected = "at most 200,000: fewer language models, or a wider step"
        raise ConfigError("--grid", f"{points:,} points", expected)
    if not flags.refine.isdecimal() or int(flags.refine) > 16:
        raise ConfigError("--refine", flags.refine, "a whole number from 0 to 16")
    flags.refine = int(flags.refine)
    flags.fixed = fixed(flags.weights, len(models))
    if flags.fixed is None and not flags.dev:
        raise ConfigError("--dev", "none", "a list to tune on, or --weights")
    return flags


def numbers(flag: str, text: str) -> list[float]:
    """Returns the numbers of FIRST:LAST:STEP, ascending.

    Raises:
      ConfigError: they are no such numbers.
    """
    try:
        first, last, step = map(float, text.split(":"))
        count = math.floor((last - first) / step + 1e-9) + 1
        if not (step > 0 and 1 <= count <= 10_000):
            raise ValueError
        return [round(first + n * step, 10) for n in range(count)]
    except (ValueError, ZeroDivisionError, OverflowError):
        expected = "FIRST:LAST:STEP with FIRST at most LAST and STEP above 0"
        raise ConfigError(flag, text, expected) from None


def fixed(text: str | None, models: int) -> tuple[float, ...] | None:
    """Returns the weights of --weights, None where it is not given."""
    if text is None:
        return None
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if len(found) != models + 1 or not all(map(math.isfinite, found)):
        expected = f"{models} weights of language models and one of the words"
        raise ConfigError("--weights", text, expected)
    return found


# ── Log-probabilities of the hypotheses ─────────────────────────────────────────────


def score(
    workdir: Path, lists: dict[str, list[Utterance]], flags: Namespace
) -> list[tuple[str, list[Any]]]:
    """Scores the hypotheses of all lists by a run; returns (list, log p) of each.

    Raises:
      ConfigError: the run's objective scores no texts without a source.
    """
    from lm import run as runs
    from lm.data.scoring import Settings, Text

    config = configs.of_run(workdir, UNEVALUATED)
    runs.check(config, {"score"}, "lm.rescore")
    objective = runs.open_objective(config)
    if ("text",) not in objective.score_fields:
        what = f"{config.objective.name!r}, which scores targets of a source"
        expected = "one that scores texts; score pairs by lm.score, and give --scores"
        raise ConfigError(f"--lm={workdir}: objective", what, expected)
    opened = runs.open_run(workdir, config=config, note=note)
    found = []
    with opened.on_mesh():
        scorer = runs.make_scorer(opened.corpus, opened.program, opened.params)
        settings = Settings(end=opened.corpus.codec.eos_id is not None)
        for name, utterances in lists.items():
            texts = [
                Text(h.text, where=one.where)
                for one in utterances
                for h in one.hypotheses
            ]
            starts = range(0, len(texts), CHUNK)
            totals: list[float] = []
            tell = functools.partial(progress, f"{workdir}: {name}")
            for first in timing.with_progress(starts, len(starts), tell):
                scores = scorer(texts[first : first + CHUNK], settings)
                totals += (each.total for each in scores)
            found.append((name, regroup(totals, utterances)))
    return found


def progress(what: str, text: str) -> None:
    """Writes how far the scoring of a list is."""
    note(f"{what}, {CHUNK} hypotheses at a time: {text}")


def read_scores(file: str, utterances: list[Utterance]) -> list[Any]:
    """Reads an output of lm.score with a row for each hypothesis, in their order.

    Raises:
      DataError: it has other texts, or no log-probability.
    """
    lines = inputs.read_lines(Path(file), note)
    asked = [h.text for one in utterances for h in one.hypotheses]
    if len(lines) != len(asked):
        expected = f"{len(asked)}, one for each hypothesis"
        raise DataError(file, f"{len(lines)} rows", expected)
    values = []
    for line, text in zip(lines, asked):
        row = inputs.parse_object(line, '{"text": "...", "log_prob": ...}')
        given = row.get("text", row.get("target", row.get("continuation")))
        if given != text:
            found = f"the text {str(given)[:40]!r}"
            expected = f"{text[:40]!r}, the hypothesis of this place"
            raise DataError(line.where, found, expected)
        value = row.get("log_prob", "none")
        if value is not None and not isinstance(value, int | float):
            raise DataError(line.where, "no number 'log_prob'", "a row of lm.score")
        values.append(-math.inf if value is None else float(value))
    return regroup(values, utterances)


def regroup(values: Sequence[float], utterances: Sequence[Utterance]) -> list[Any]:
    """Cuts the values of all hypotheses into those of each utterance."""
    # An impossible hypothesis may still win, where its model has weight 0.
    array = np.maximum(np.asarray(values, np.float64), -1e9)
    ends = np.cumsum([len(one.hypotheses) for one in utterances])
    return np.split(array, ends[:-1])


# ── Weights, choices and errors ─────────────────────────────────────────────────────


def rescore(
    sets: Sequence[Set], flags: Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tunes the weights; returns what is printed, and the rows of the test list."""
    from lm.metrics import rescoring, speech

    form = speech.FORMS[flags.form]
    errors = {one.name: errors_of(one, lambda text: form(text).split()) for one in sets}
    packed = {one.name: pack(one, errors[one.name], form) for one in sets}
    found: dict[str, Any] = {"form": flags.form, "weights": {}}
    if flags.fixed is None:
        tuned = rescoring.tune(packed["dev"], flags.grids, flags.refine)
        weights = tuned.weights
        found["grid"] = dict(zip(names(flags), tuned.grid))
        for name, weight, grid in zip(names(flags), tuned.grid, flags.grids):
            if len(grid) > 1 and weight == grid[-1]:
                note(f"the best weight of {name}, {weight}, is the end of its grid")
    else:
        weights = flags.fixed
    found["weights"] = dict(zip(names(flags), weights))
    rows: list[dict[str, Any]] = []
    for one in sets:
        chosen = packed[one.name].choose(weights).tolist()
        known = not (one.name == "test" and flags.unlabelled)
        if known:
            found[one.name] = report(one, errors[one.name], chosen, form)
        for utterance, number in zip(one.utterances, chosen):
            text = utterance.hypotheses[number].text
            rows.append({"id": utterance.id, "text": text, "rank": number + 1})
    return found, rows[len(rows) - len(sets[-1].utterances) :]


def names(flags: Namespace) -> list[str]:
    """Returns the names of the weights: the language models, and "words"."""
    return [*(place.split(",")[0] for _, place in flags.models), "words"]


def errors_of(one: Set, split: Any) -> "list[list[Errors]]":
    """Counts the word errors of each hypothesis, 0 where there is no reference."""
    from lm.metrics import speech

    return [
        speech.count(
            split(utterance.reference or ""),
            [split(hypothesis.text) for hypothesis in utterance.hypotheses],
        )
        for utterance in one.utterances
    ]


def pack(one: Set, errors: "list[list[Errors]]", form: Any) -> "Lists":
    """Returns the scores that are mixed: the list's own, of the models, the words."""

    from lm.metrics import rescoring

    scores = []
    for n, utterance in enumerate(one.utterances):
        own = [hypothesis.score for hypothesis in utterance.hypotheses]
        words = [len(form(h.text).split()) for h in utterance.hypotheses]
        scores.append(np.asarray([own, *(model[n] for model in one.models), words]))
    return rescoring.pack(scores, [[each.total for each in row] for row in errors])


def report(
    one: Set, errors: "list[list[Errors]]", chosen: Sequence[int], form: Any
) -> dict[str, Any]:
    """Returns the word errors of first, chosen and best hypotheses of a list."""

    from lm.metrics import speech, statistics

    best = [min(range(len(row)), key=lambda n: row[n].total) for row in errors]
    found: dict[str, Any] = {"utterances": len(errors)}
    for name, numbers in (
        ("first", [0] * len(errors)),
        ("rescored", chosen),
        ("oracle", best),
    ):
        each = [row[n] for row, n in zip(errors, numbers)]
        wrong = np.asarray([e.total for e in each], float)
        length = np.asarray([e.length for e in each], float)

        def rate(pick: Any, wrong: Any = wrong, length: Any = length) -> float:
            return float(100 * wrong[pick].sum() / max(length[pick].sum(), 1))

        total = speech.add(each)
        low, high = statistics.bootstrap(rate, len(each))
        pairs = (
            (form(utterance.reference or ""), form(utterance.hypotheses[n].text))
            for utterance, n in zip(one.utterances, numbers)
        )
        letters = speech.add([speech.count(right, [text])[0] for right, text in pairs])
        found[name] = {
            "wer": round(100 * total.rate, 4) if total.length else None,
            "wer_interval": [round(low, 4), round(high, 4)],
            **total._asdict(),
            "cer": round(100 * letters.rate, 4) if letters.length else None,
        }
    return found


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
