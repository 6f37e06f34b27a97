"""Command: trains or fits the model of a config, or continues a run.

python -m lm.main --config=FILE[:ARG] [--workdir=DIR]
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import jobs
from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.hf import source
from lm.host import agreement, lock, process, storage

USAGE = """python -m lm.main --config=FILE[:ARG] [--config.a.b=VALUE]
    [--workdir=DIR] [--strict] [--allow-change=FIELD[,FIELD]]

Trains a model as a config says. The same command again continues the run, or
says that it is finished. Any field of the config can be set on the command
line: --config.optim.lr=1e-4."""


def run(argv: list[str]) -> int:
    parser = Parser("lm.main", USAGE, more=configs.describe_files)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="the config file and its argument; every one understands :quick",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where the run lives (default: runs/<config name>[-<arg>])",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a damaged checkpoint (exit 4) rather than use the one before",
    )
    parser.add_argument(
        "--allow-change",
        default="",
        metavar="FIELD[,FIELD]",
        help="frozen fields that may differ from the run that is continued "
        "(default: none)",
    )
    flags, overrides = parser.parse_known_args(argv)
    workdir = Path(flags.workdir or configs.default_workdir(flags.config))
    return start(
        flags.config,
        overrides,
        workdir,
        strict=flags.strict,
        allow_change=tuple(filter(None, flags.allow_change.split(","))),
        notes=[] if flags.workdir else [f"workdir: {workdir} (--workdir: another)"],
    )


def start(
    config: str | Mapping[str, Any],
    overrides: list[str] | Mapping[str, Any],
    workdir: Path,
    *,
    strict: bool = False,
    allow_change: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> int:
    """Checks all that can be checked early, starts jax, and runs the job of a config.

    Args:
      config, overrides: as `lm.config.resolve.load` takes them.

    Returns:
      The exit code of the job.
    """
    complete = configs.load(config, overrides, fill=source.with_shape(workdir))
    storage.check_directory(workdir)
    source.check(complete, workdir)
    lines = [*notes, *process.platform_setup()]
    agreement.check_config(configs.to_json(complete))

    from lm import run as runs  # after the checks above: it imports jax

    runs.check(complete)
    with lock.of_workdir(workdir, lines.append, primary=process.is_primary()):
        # After the checks above: it imports much.
        run_job = jobs.load(complete.job, configs.ROOT)
        return run_job(
            complete, workdir, strict=strict, allow_change=allow_change, notes=lines
        )


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
