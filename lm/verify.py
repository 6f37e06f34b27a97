"""Command: checks on your own config what is promised of every run.

python -m lm.verify --config=FILE[:ARG] [--workdir=DIR] [--only=CHECK,...] [--full]
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm.config import jobs
from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError, StorageError
from lm.host import process, storage

USAGE = """python -m lm.verify --config=FILE[:ARG] [--config.a.b=VALUE]
    [--workdir=DIR] [--only=CHECK[,CHECK]] [--full]

Runs the config small (few steps, narrow, two layers; what the command line sets
stays as it is) and prints for each check whether it holds, the largest relative
difference, and the first array that differs:

resume        a run killed twice (kill -9) and started again ends bit for bit as
              one that was not: parameters, optimiser, data position, metrics
padding       places behind the end of a row change nothing
packing       two rows in one say what they say apart
order         the rows of a batch in another order give the same gradient
accumulation  micro-batches add up to the full batch
scan          layers scanned are layers one after the other
remat         what is computed again is what was computed
devices       8 devices, replicated and sharded, are 1
cache         decoders: a text read token by token gets the logits of the whole

All but resume compare the loss and every gradient in float32 without dropout.
Exit code 0 if all hold, 1 if one does not."""
STEPS, EVERY = 9, 3
# The process dies at its eighth step, when the first save is whole and the second
# perhaps not; the next one at its third.
KILLS = ("step:8", "step:3")
LIMIT = 3600  # seconds for a process of the small run
CHECKS = ("resume", "padding", "packing", "order", "accumulation", "scan", "remat")
CHECKS += ("devices", "cache")
# Set for this process alone, not for the runs that it starts.
ENVIRON = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")


@dataclasses.dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
      passed: None where the check says nothing about this config.
      largest: the largest difference.
      note: what differs first, or why there is nothing to check.
    """

    check: str
    passed: bool | None
    largest: float | None
    note: str

    def line(self) -> str:
        word = {True: "pass", False: "FAIL", None: "none"}[self.passed]
        number = "" if self.largest is None else f"{self.largest:.1e}"
        return f"{self.check:<12}  {word:<4}  {number:>8}  {self.note}".rstrip()


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
      environ: of the runs that are started.
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
    """Eight devices where there is only a CPU; must come before jax is imported.

    Returns:
      What the environment said of it before.
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
    """The results in the order of CHECKS, each as soon as it is known.

    Raises:
      DataError: what the data of the config are refused for.
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
        yield resume(tree, straight, killed, environ)
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
    """The config as a tree, to be run in seconds; `given` fields stay as they are."""
    tree = configs.plain(config, "config")
    tree |= {"evals": {}, "stop": {}, "init": {}, "steps": STEPS}
    tree["mesh"] = {"rules": tree["mesh"]["rules"]}
    tree["checkpoint"] = {"every": EVERY, "keep_last": 3}
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
    """Gives the changes that make rows short and the model small, of the same kind."""
    from lm import run as runs

    cls = configs.load_class("objective", config.objective.name)
    objective = configs.build(cls, config.objective)
    model = runs.open_model(config, objective)
    changes: dict[str, Any] = {"seq_len": min(config.seq_len, 128)}
    # Patterns may name layers that the small model lacks.
    changes |= {"optim.multipliers": [], "optim.freeze": []}
    changes |= {f"objective.{name}": new for name, new in objective.small().items()}
    return changes | {f"model.{name}": new for name, new in model.small().items()}


def describe(config: Config) -> str:
    model = config.model
    sizes = [f"{config.steps} steps of {config.batch_size} rows of {config.seq_len}"]
    if "num_layers" in model and "d_model" in model:
        sizes.append(f"{model.num_layers} layers, {model.d_model} wide")
    return f"small run: {'; '.join(sizes)}"


def inherit_tokenizer(config: Config, workdir: Path) -> None:
    """The tokenizer of the run that the config begins with, which the small one has."""
    from lm.data import pipeline
    from lm.hf import source

    giver = config.init.source
    if giver is not None and not source.is_hf(giver):
        pipeline.copy_tokenizer(Path(giver) / "tokenizer", workdir / "tokenizer")


# ── Killed and resumed, against a straight run ──────────────────────────────────────


def resume(
    tree: dict[str, Any],
    straight: Path,
    killed: Path,
    environ: dict[str, str | None],
) -> Result:
    """Compares a run that was killed twice with one that was not.

    Raises:
      StorageError: a run takes too long.
      CheckpointError: a run ends otherwise than it should.
    """
    file = straight.with_name("small.py")
    storage.write_text(file, FILE.format(tree=json.dumps(json.dumps(tree))))
    start(file, straight, environ)
    for point in KILLS:
        start(file, killed, environ | {"LM_CRASHPOINT": point})
    start(file, killed, environ)
    said = (killed / "run.log").read_text()
    if said.count("continuing from step") != len(KILLS):
        return Result("resume", False, None, "a start that found no save")
    return same_end(straight, killed)


FILE = '''"""The small run of lm.verify."""

import json


def get_config(arg: str = "") -> dict:
    return json.loads({tree})
'''


def start(file: Path, workdir: Path, environ: dict[str, str | None]) -> None:
    """Runs the command of a training in a process of its own.

    Raises:
      StorageError: it takes too long.
      CheckpointError: it ends otherwise than it should.
    """
    command = [sys.executable, "-m", "lm.main", f"--config={file}"]
    command.append(f"--workdir={workdir}")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    changed = (
        os.environ | environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    )
    given = {name: value for name, value in changed.items() if value is not None}
    try:
        done = subprocess.run(
            command,
            env=given,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise StorageError(
            " ".join(command), f"still running after {LIMIT} s", "its end"
        ) from None
    expected = -signal.SIGKILL if "LM_CRASHPOINT" in environ else 0
    if done.returncode != expected:
        said = done.stdout.splitlines()[-2:]
        raise CheckpointError(
            " ".join(command),
            f"exit code {done.returncode} after {' | '.join(said)!r}",
            str(expected),
            "run this command alone to see all that it says",
        )


def same_end(straight: Path, killed: Path) -> Result:
    """Whether two runs have ended with the same bits, rows and place in the data."""
    for name in ("metrics.jsonl", f"checkpoints/{STEPS}/host.json"):
        texts = [
            (folder / name).read_text().splitlines() for folder in (straight, killed)
        ]
        if texts[0] != texts[1]:
            number = next(
                (i for i, lines in enumerate(zip(*texts)) if len(set(lines)) > 1),
                min(map(len, texts)),
            )
            return Result("resume", False, None, f"{name}, line {number + 1}")
    import numpy as np

    largest, first = 0.0, None
    ends = [leaves(folder / f"checkpoints/{STEPS}") for folder in (straight, killed)]
    for name, x in ends[0].items():
        y = ends[1].get(name)
        if y is None or x.shape != y.shape or x.dtype != y.dtype:
            return Result("resume", False, None, name)
        if x.tobytes() != y.tobytes():
            first = first or name
            scale = np.abs(x.astype(np.float64)).max() or 1.0
            gap = np.abs(x.astype(np.float64) - y.astype(np.float64)).max()
            largest = max(largest, float(gap / scale))
    return Result("resume", first is None, largest, first or "")


def leaves(step: Path) -> dict[str, Any]:
    """The arrays of a checkpoint by path, on the host."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from lm import trees
    from lm.workdir import checkpoint

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.checkpointables_metadata(step).metadata["state"],
    )
    state = checkpoint.read_state(step, wanted)
    return {name: np.asarray(x) for name, x in trees.flatten(state).items()}


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
