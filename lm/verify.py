"""Command: verifies for your own config what every run promises.

python -m lm.verify --config=FILE[:ARG] [--workdir=DIR] [--only=CHECK,...] [--full]
"""

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm.checks import resume
from lm.checks.resume import Result
from lm.config import jobs
from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.config.resolve import Config
from lm.errors import ConfigError
from lm.host import process, storage

USAGE = """python -m lm.verify --config=FILE[:ARG] [--config.a.b=VALUE]
    [--workdir=DIR] [--only=CHECK[,CHECK]] [--full]

Runs the config small (few steps, narrow, two layers; what the command line sets
stays as it is) and prints for each check whether it holds, the largest relative
difference, and the first array that differs:

resume        a run killed twice (kill -9) and started again ends bit for bit as
              one that was not: parameters, optimiser, data position, metrics
padding       padding at the end of rows changes nothing
packing       two rows packed into one change nothing
order         the rows of a batch in another order change nothing
accumulation  micro-batches instead of the full batch change nothing
scan          unrolled layers instead of a scan change nothing
remat         rematerialisation in the backward pass changes nothing
devices       8 devices, replicated or sharded, instead of 1 change nothing
cache         a text read token by token with a cache has the same logits
carry         two halves of a row, with carried state, have the same states

All but resume, cache and carry compare the loss and every gradient, in float32
without dropout.
Exit code 0 if all hold, 1 if one does not."""
CHECKS = (
    *("resume", "padding", "packing", "order", "accumulation", "scan", "remat"),
    *("devices", "cache", "carry"),
)
# Set for this process alone, not for the runs that it starts.
ENVIRON = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")


def run(argv: list[str]) -> int:
    parser = Parser("lm.verify", USAGE)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="the config file and its argument",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="a new folder, kept afterwards (default: a temporary one)",
    )
    parser.add_argument(
        "--only",
        default=",".join(CHECKS),
        metavar="CHECK[,CHECK]",
        help="the checks to run (default: all)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="keep all sizes of the model and the data (default: small)",
    )
    flags, overrides = parser.parse_known_args(argv)
    wanted = flags.only.split(",")
    for name in wanted:
        if name not in CHECKS:
            raise configs.no_such("--only", name, CHECKS)
    environ = simulate_devices()
    config = configs.load(flags.config, overrides)
    given = {flag.partition("=")[0].removeprefix("--config.") for flag in overrides}
    if flags.workdir is None:
        with tempfile.TemporaryDirectory(prefix="lm-verify-") as folder:
            return verify(config, given, Path(folder), wanted, flags.full, environ)
    workdir = Path(flags.workdir)
    storage.check_directory(workdir)
    if workdir.exists() and any(workdir.iterdir()):
        found = "a directory that is not empty"
        raise ConfigError(f"--workdir {workdir}", found, "a new or an empty one")
    return verify(config, given, workdir, wanted, flags.full, environ)


def verify(
    config: Config,
    given: set[str],
    workdir: Path,
    wanted: list[str],
    full: bool,
    environ: dict[str, str | None],
) -> int:
    """Runs the checks and prints their table; returns the exit code.

    Args:
      given: the fields that the command line sets.
      environ: variables of the runs that are started.
    """
    process.platform_setup()

    from lm import run as runs

    runs.check(config)
    config = runs.with_tokenizer(config, workdir)
    tree = small(config, given, workdir / "data", full)
    say(describe(configs.resolve(tree)))
    say(f"{'check':<12}  {'':<4}  {'largest':>8}  first that differs, or why none")
    began, failed = time.monotonic(), []
    for result in results(config, tree, workdir, wanted, environ):
        say(result.line())
        failed += [result.check] if result.passed is False else []
    took = f"{time.monotonic() - began:.0f} s"
    say(f"failed: {', '.join(failed)} ({took})" if failed else f"all hold ({took})")
    return 1 if failed else 0


def say(line: str) -> None:
    print(line, flush=True)


def simulate_devices() -> dict[str, str | None]:
    """Simulates eight devices on a CPU; must be called before jax is imported.

    Returns:
      The variables of the environment that it changes, with their previous values.
    """
    before = {name: os.environ.get(name) for name in ENVIRON}
    # XLA warns that some of the meshes are slow for so small a model; 1 is jax's own.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    flag = "--xla_force_host_platform_device_count"
    given = os.environ.get("XLA_FLAGS", "")
    if flag not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}=8".strip()
    return before


def results(
    config: Config,
    tree: dict[str, Any],
    workdir: Path,
    wanted: list[str],
    environ: dict[str, str | None],
) -> Iterator[Result]:
    """Yields the results in the order of CHECKS.

    Raises:
      DataError: the data of the config are refused.
    """
    from lm import run as runs
    from lm.checks import invariances
    from lm.data import pipeline

    straight, killed = workdir / "straight", workdir / "killed"
    inherit_tokenizer(config, straight)
    shrunk, has_loss = (
        configs.resolve(tree),
        jobs.read(config.job, configs.ROOT)["loss"],
    )
    if has_loss:
        subject = invariances.Subject(shrunk, straight, lambda line: None)
    else:  # It would make the tokenizer.
        runs.open_corpus(shrunk, straight, lambda line: None)
    if "resume" in wanted:
        pipeline.copy_tokenizer(straight / "tokenizer", killed / "tokenizer")
        yield resume.check(tree, straight, killed, environ)
    for name, check in invariances.CHECKS.items():
        if name in wanted and has_loss:
            yield invariant(name, check, subject)
        elif name in wanted:
            yield Result(name, None, None, f"job {config.job} has no loss and gradient")


def invariant(name: str, check: Callable, subject: Any) -> Result:
    from lm.checks.invariances import NotApplicable

    try:
        found = check(subject)
    except NotApplicable as why:
        return Result(name, None, None, str(why))
    return Result(name, found.first is None, found.largest, found.first or "")


def small(config: Config, given: set[str], cache: Path, full: bool) -> dict[str, Any]:
    """Makes a config that runs in seconds, as a tree; `given` fields do not change."""
    tree = configs.plain(config, "config")
    tree |= {"evals": {}, "stop": {}, "init": {}, "teacher": {}}
    tree["steps"] = resume.STEPS
    tree["mesh"] = {"rules": tree["mesh"]["rules"]}
    tree["checkpoint"] = {"every": resume.EVERY, "keep_last": 3}
    tree["log"] = {"every": 1, "tensorboard": False}
    tree["data"]["cache"] = config.data.cache or str(cache)
    changes = {
        "batch_size": 8,
        "grad_accum": min(config.grad_accum, 2),
        "optim.warmup": 2,
        "optim.decay": 3,
    }
    for path, value in (changes if full else changes | narrow(config)).items():
        *parents, last = path.split(".")
        section = functools.reduce(dict.__getitem__, parents, tree)
        if path not in given and last in section:  # A fit has no optimiser.
            section[last] = value
    return tree


def narrow(config: Config) -> dict[str, Any]:
    """Returns the fields of short rows and a small model of the same kind."""
    from lm import run as runs
    from lm.config import match

    objective = runs.open_objective(config)
    model, adapter = runs.open_model(config, objective), match.open_adapter(config)
    return {
        "seq_len": min(config.seq_len, 128),
        # Patterns may name layers that the small model lacks.
        "optim.multipliers": [],
        "optim.freeze": [],
        **{f"objective.{path}": value for path, value in objective.small().items()},
        **{f"model.{path}": value for path, value in model.small().items()},
        **{f"adapter.{path}": value for path, value in adapter.small().items()},
    }


def describe(config: Config) -> str:
    """Describes the sizes of the small run in a line."""
    from lm import run as runs

    model = runs.open_model(config, runs.open_objective(config))
    sizes = [f"{config.steps} steps of {config.batch_size} rows of {config.seq_len}"]
    fields = (path for path in model.small() if "." not in path)
    sizes += [f"{path} {config.model[path]}" for path in fields]
    return f"small run: {'; '.join(sizes)}"


def inherit_tokenizer(config: Config, workdir: Path) -> None:
    """Copies the tokenizer of the run from which the config takes it."""
    from lm import run as runs
    from lm import vectors
    from lm.data import pipeline
    from lm.hf import source

    giver = runs.giver(config)
    if giver is not None and not (source.is_hf(giver) or vectors.split(giver)):
        pipeline.copy_tokenizer(Path(giver) / "tokenizer", workdir / "tokenizer")


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
