"""Command: runs a config in many settings, and tables what they reach.

python -m lm.sweep --config=FILE[:ARG] [--seeds=5] [--folds=10] [--grid=FIELD=V,V]
"""

import contextlib
import dataclasses
import io
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm import results as kept
from lm.config import files, sweeps
from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.config.resolve import Config
from lm.config.sweeps import Setting
from lm.errors import CheckpointError, ConfigError, Refusal, WorkdirError, shorten
from lm.hf import source
from lm.host import lock, process, storage
from lm.host.children import Children, Ended, last_line
from lm.host.timing import clock
from lm.results import Choice, Result
from lm.workdir.lines import WIDTH, wrap

USAGE = """python -m lm.sweep --config=FILE[:ARG] [--config.a.b=VALUE]
    [--seeds=N] [--folds=K] [--grid=FIELD=VALUE,VALUE ...] [--workdir=DIR]
    [--jobs=N] [--metrics=NAME[,NAME]] [--list | --show] [--json=FILE]

Runs lm.main once for each setting: those that a function sweep(add) of the
config adds, multiplied by the flags --grid, --folds and --seeds. Each is
checked before the first one starts, and has a folder of its own in DIR. The
same command again goes on with what is unfinished and tries failed runs
again; DIR/sweep.jsonl has a row for each. At the end comes a table: of the
runs that differ in seed and fold alone the mean, its interval by Student's t,
and others.
Exit code 0 if all are done, 1 if a run failed, 75 or 130 after a signal."""
FILE, TABLE, OUTPUT = "sweep.jsonl", "table.txt", "output.log"
EVERY = 60.0  # seconds between two looks at what runs
AGAIN = 10.0  # seconds until a run that another process is at work on is tried again
STOPPED = (process.PREEMPTED, process.INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)
MOST_JOBS = 256
MANY = 200  # settings, whose check takes more than ten seconds


class Planned(NamedTuple):
    """A setting that has been checked.

    Attributes:
      setting: field -> value.
      name: of the setting.
      workdir: of its run.
      overrides: those of lm.main for its config.
      command: the arguments of Python that run it.
      config: complete.
      changed: whether the workdir has another config, which may become this one.
    """

    setting: Setting
    name: str
    workdir: Path
    overrides: list[str]
    command: list[str]
    config: Config
    changed: bool = False


class Sweep(NamedTuple):
    """What a command has been asked to run and to show.

    Attributes:
      config: `FILE[:ARG]`.
      folder: of the sweep.
      plans: the settings, by the names of their folders.
      choice: what is shown.
      jobs: how many run at a time.
    """

    config: str
    folder: Path
    plans: dict[str, Planned]
    choice: Choice
    jobs: int


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags, overrides, jobs = parse(argv)
    axes = [sweeps.grid(text) for text in flags.grid]
    axes += [sweeps.folds(flags.folds)] if flags.folds is not None else []
    axes += [sweeps.seeds(flags.seeds)] if flags.seeds is not None else []
    settings = sweeps.expand(sweeps.read(flags.config), axes)
    sweeps.check_overrides(settings, overrides)
    folder = Path(flags.workdir or f"{configs.default_workdir(flags.config)}-sweep")
    plans, choice = check(flags, overrides, settings, folder)
    by_folder = {plan.workdir.name: plan for plan in plans}
    sweep = Sweep(flags.config, folder, by_folder, choice, jobs)
    if flags.list:
        for plan in plans:
            print(shlex.join(["python", *plan.command]))
        return 0
    known = check_folder(folder, flags.config)
    if flags.show and not known:
        raise ConfigError(f"--workdir={folder}", "no sweep", "one that has begun")
    if flags.show:
        show(sweep, begin(sweep, known), flags.json)
        return 0
    with lock.of_workdir(folder, say):
        known = check_folder(folder, flags.config)  # Another may just have ended.
        results, code = run_all(sweep, known)
        show(sweep, results, flags.json, keep=True)
    return code


def show(
    sweep: Sweep, results: dict[str, Result], json: str | None, keep: bool = False
) -> None:
    """Prints the table.

    Args:
      json: a file for the same as JSON.
      keep: whether the folder gets the table too.
    """
    own = [*results.values()]
    text = kept.to_text(sweep.folder, own, sweep.choice)
    if keep:
        storage.write_text(sweep.folder / TABLE, f"{text}\n")
    if json:
        table = kept.to_json(sweep.folder, own, sweep.choice)
        storage.write_text(Path(json), table)
    say(text)


def parse(argv: list[str]) -> tuple[Namespace, list[str], int]:
    """Parses the flags; returns them, the overrides, and how many jobs run at a time.

    Raises:
      ConfigError: a flag is unknown or wrong.
    """
    parser = Parser("lm.sweep", USAGE)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="the config file and its argument",
    )
    texts = {
        "workdir": ("DIR", "where the runs live (default: runs/<config>-sweep)"),
        "seeds": ("N", "the seeds 0 to N - 1, or a list (default: the config's)"),
        "folds": ("K", "data.fold 1/K to K/K, cross-validation (default: none)"),
        "jobs": ("N", f"runs at a time, 1 to {MOST_JOBS} (default: 1)"),
        "metrics": (
            "NAME[,NAME]",
            "those of the table, such as dev/accuracy (default: that of --select, "
            "or all of the first evaluation)",
        ),
        "select": (
            "NAME",
            "the metric that selects a setting, or none; a test set is refused "
            "(default: that of checkpoint.best)",
        ),
        "json": ("FILE", "write the table as JSON too (default: nowhere)"),
    }
    for name, (metavar, text) in texts.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=V[,V]",
        help="values of a field; several times: their product (default: none)",
    )
    parser.add_argument(
        "--mode",
        choices=("min", "max"),
        help="whether a smaller or a larger value of --select is better (default: "
        "checkpoint.best_mode)",
    )
    parser.add_argument(
        "--at",
        choices=("best", "last"),
        help="the step of each run whose metrics count (default: best, where there is "
        "a checkpoint.best)",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the command of each run, and end"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the table as it stands, and end"
    )
    flags, overrides = parser.parse_known_args(argv)
    jobs = flags.jobs or "1"
    if not jobs.isdecimal() or len(jobs) > 3 or not 1 <= int(jobs) <= MOST_JOBS:
        expected = f"a whole number from 1 to {MOST_JOBS}"
        raise ConfigError("--jobs", repr(flags.jobs), expected)
    if flags.json:
        storage.check_directory(Path(flags.json).parent)
    return flags, overrides, int(jobs)


# ── Before anything runs ────────────────────────────────────────────────────────────


def check(
    flags: Namespace, overrides: list[str], settings: Sequence[Setting], folder: Path
) -> tuple[list[Planned], Choice]:
    """Checks every setting, and what is to be shown.

    Raises:
      Refusal: as lm.main would; names the setting.
      ConfigError: two settings make one config, or a metric will not exist.
    """
    storage.check_directory(folder)
    tree = files.read_file(flags.config)
    if len(settings) > MANY:
        print(f"checking {len(settings):,} settings", file=sys.stderr, flush=True)
    plans: list[Planned] = []
    seen: dict[str, str] = {}
    for setting in settings:
        name = sweeps.describe(setting)
        workdir = folder / sweeps.folder_of(setting)
        given = [*overrides, *sweeps.flags_of(setting)]
        with naming(name):
            config = configs.load(tree, given, fill=source.with_shape(workdir))
            source.check(config, workdir)
        if (twin := seen.setdefault(configs.to_json(config), name)) != name:
            found = f"{twin} and {name}, which are one config"
            raise ConfigError("sweep", found, "settings that differ")
        command = ["-m", "lm.main", f"--config={flags.config}", *given]
        command.append(f"--workdir={workdir}")
        if flags.allow_code:
            command.append(f"--allow-code={flags.allow_code}")
        plans.append(Planned(setting, name, workdir, given, command, config))
    for plan in [plan for plan in plans if plan.config.data.fold][:1]:
        for line in sweeps.check_folds(plan.name, plan.config):
            print(line, file=sys.stderr, flush=True)

    from lm import run as runs  # It imports jax, but does not start it.
    from lm.workdir import adopt

    for number, plan in enumerate(plans):
        with naming(plan.name):
            runs.check(plan.config)
            if (plan.workdir / "config.json").exists():
                config = runs.with_tokenizer(plan.config, plan.workdir)
                _, changes = adopt.check_config(config, plan.workdir)
                plans[number] = plan._replace(changed=bool(changes))

    def check_metric(flag: str, metric: str) -> None:
        try:
            given = [*plans[0].overrides, f"--config.checkpoint.best={metric}"]
            fill = source.with_shape(plans[0].workdir)
            runs.check(configs.load(tree, given, fill=fill))
        except ConfigError as error:
            if error.where != "checkpoint.best":
                raise
            raise ConfigError(flag, error.found, error.expected, error.fix) from None

    chosen = choose(flags, plans[0].config)
    for metric in chosen.metrics:
        check_metric("--metrics", metric)
    if flags.select and chosen.select:
        check_metric("--select", chosen.select)
    return plans, chosen


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Adds the name of a setting to a refusal; leaves out notes on overrides."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except Refusal as error:
        where = f"setting {name}: {error.where}"
        raise type(error)(where, error.found, error.expected, error.fix) from error


def choose(flags: Namespace, config: Config) -> Choice:
    """Makes the choice of what is shown from the flags and a config of the sweep.

    Raises:
      ConfigError: it follows no metric that a flag asks for, or selects on a test set.
    """
    best, mode = config.checkpoint.best, config.checkpoint.best_mode
    if flags.at == "best" and best is None:
        expected = "last, since the config has no checkpoint.best"
        raise ConfigError("--at", "'best'", expected)
    dev = None if best is None or kept.is_test(best) else best
    select = None if flags.select == "none" else flags.select or dev
    metrics = tuple(filter(None, (flags.metrics or select or best or "").split(",")))
    if flags.select and select and kept.is_test(select):
        raise ConfigError(
            "--select",
            f"{select!r}, of a test set",
            "a metric of a development set",
            "choose by another evaluation, or show it by --metrics with --select=none.",
        )
    if select is not None and select != best and flags.mode is None:
        expected = f"min or max, whether a smaller or a larger {select} is better"
        raise ConfigError("--mode", "nothing", expected)
    return Choice(
        metrics,
        flags.at or ("best" if best else "last"),
        select,
        flags.mode or mode,
        next(iter(config.evals), None),
        best,
    )


def check_folder(folder: Path, config: str) -> dict[str, Result]:
    """Reads the results that are there.

    Raises:
      ConfigError: the folder is not empty, and not of a sweep.
      CheckpointError: it is of the sweep of another config.
    """
    known = kept.read(folder / FILE)
    fix = "give another --workdir"
    own = {"lock", f".{FILE}.tmp"}  # left where a sweep was killed at its start
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if FILE not in there and there - own:
        found = "a folder that is not empty, and no sweep.jsonl in it"
        raise ConfigError(f"--workdir={folder}", found, "a new folder, or a sweep", fix)
    for result in known.values():
        if result.config != config:
            found = f"a sweep of {result.config}"
            raise CheckpointError(str(folder), found, f"one of {config}", fix)
    return known


# ── The runs ────────────────────────────────────────────────────────────────────────


def begin(sweep: Sweep, known: dict[str, Result]) -> dict[str, Result]:
    """Returns the results of the settings by their folders, as far as they are known.

    A run that is done counts as such only while its config is the same.
    """
    results = {}
    for folder, plan in sweep.plans.items():
        values = sweeps.values_of(plan.setting)
        result = known.get(folder) or Result(sweep.config, plan.name, folder, values)
        gone = result.status == "done" and not (plan.workdir / "config.json").exists()
        if result.status == "running" or plan.changed or gone:
            result = dataclasses.replace(result, status="waiting")
        results[folder] = result
    return results


def run_all(sweep: Sweep, known: dict[str, Result]) -> tuple[dict[str, Result], int]:
    """Runs what is not done yet, and keeps sweep.jsonl up to date.

    Returns:
      The results, and the exit code.
    """
    results, file = begin(sweep, known), sweep.folder / FILE
    others = [each for folder, each in known.items() if folder not in results]
    queue = [folder for folder, each in results.items() if each.status != "done"]
    say(f"{len(results)} runs in {sweep.folder}, {describe(results)}")
    if others:
        say(f"{len(others)} more runs in {file} are not of this command")

    def put(folder: str, **changes: Any) -> Result:
        results[folder] = dataclasses.replace(results[folder], **changes)
        kept.write(file, [*results.values(), *others])
        return results[folder]

    for folder in queue:
        results[folder] = dataclasses.replace(results[folder], status="waiting")
    after: dict[str, float] = {}  # when a run of another process is tried again
    looked = time.monotonic()
    with Children() as children:
        while queue or children.running:
            now = time.monotonic()
            room = sweep.jobs - len(children.running)
            ready = [folder for folder in queue if after.get(folder, now) <= now]
            for folder in ready[:room] if children.signal is None else ():
                queue.remove(folder)
                put(folder, status="running", attempts=results[folder].attempts + 1)
                command = [sys.executable, *sweep.plans[folder].command]
                children.start(folder, command, sweep.folder / folder / OUTPUT)
            for ended in children.ended():
                plan, result = sweep.plans[ended.key], results[ended.key]
                stopping = children.signal is not None
                result = put(ended.key, **conclude(plan, result, ended, stopping))
                if result.status == "waiting":
                    if ended.key not in after:
                        say(f"{result.name}: {result.error} It is tried again.")
                    after[ended.key] = time.monotonic() + AGAIN
                    queue.append(ended.key)
                    continue
                say(progress(sweep, results, ended, children))
            if children.signal is not None and not children.running:
                break
            if time.monotonic() - looked > EVERY:
                looked = time.monotonic()
                for folder in children.running:
                    said = last_line(sweep.folder / folder / OUTPUT)
                    say(shorten(f"  {results[folder].name}: {said}", WIDTH - 5))
        stop = children.signal
    statuses = {each.status for each in results.values()}
    if stop is not None:
        say(f"stopped, {describe(results)}; the same command again continues")
        code = process.INTERRUPTED if stop == signal.SIGINT else process.PREEMPTED
        return results, code
    if "failed" in statuses:
        return results, 1
    return results, process.PREEMPTED if "stopped" in statuses else 0


def conclude(
    plan: Planned, result: Result, ended: Ended, stopping: bool
) -> dict[str, Any]:
    """Returns the fields of a result that change with the end of its process.

    Args:
      stopping: whether a signal ends the sweep, which may have killed the process.
    """
    found: dict[str, Any] = {
        "code": ended.code,
        "error": None,
        "seconds": result.seconds + ended.seconds,
    }
    if ended.code == 0:
        policy = plan.config.checkpoint
        found |= kept.measure(plan.workdir, policy.best, policy.best_mode)
        return found | {"status": "done"}
    if ended.code in STOPPED or (stopping and ended.code < 0):
        return found | {"status": "stopped"}
    status = "waiting" if ended.code == WorkdirError.exit_code else "failed"
    return found | {"status": status, "error": shorten(ended.said, 500)}


def progress(
    sweep: Sweep, results: dict[str, Result], ended: Ended, children: Children
) -> str:
    """Describes a run that has ended, how far the sweep is, and the time left."""
    result = results[ended.key]
    over = sum(each.status in ("done", "failed") for each in results.values())
    line = f"[{over}/{len(results)}] {result.name}: {result.status}"
    parts = [f"{line} in {clock(ended.seconds)}"]
    if result.status == "failed":
        return f"{parts[0]}\n  {kept.explain(result)}"
    found = getattr(result, sweep.choice.at)
    parts += [f"{k} {found[k]:.4f}" for k in sweep.choice.metrics[:2] if k in found]
    took = [each.seconds for each in results.values() if each.status == "done"]
    if took and over < len(results):
        mean = sum(took) / len(took)
        rest = [max(mean - children.seconds(key), 0.0) for key in children.running]
        waiting = len(results) - over - len(rest)
        left = (waiting * mean + sum(rest)) / min(sweep.jobs, len(results) - over)
        parts.append(f"left {clock(left)}")
    return wrap(parts, ", ")


def describe(results: dict[str, Result]) -> str:
    """Counts the runs by their status: "3 done, 1 failed, 8 to do"."""
    statuses = [each.status for each in results.values()]
    done, failed = statuses.count("done"), statuses.count("failed")
    parts = [f"{done} done"] + [f"{failed} failed"] * bool(failed)
    return ", ".join([*parts, f"{len(statuses) - done - failed} to do"])


def say(line: str) -> None:
    print(line, flush=True)


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
