"""Command: trains a model: python -m lm.main --config=FILE[:ARG] [--workdir=DIR]."""

import sys
from pathlib import Path

from lm.config import resolve as configs
from lm.config.flags import Parser
from lm.hf import source
from lm.host import lock, process, storage

USAGE = """python -m lm.main --config=FILE[:ARG] [--config.a.b=VALUE] [--workdir=DIR]

The same command again continues the run, or says that it is finished."""


def run(argv: list[str]) -> int:
    parser = Parser("lm.main", USAGE)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--workdir", help="default: runs/<config name>[-<arg>]")
    parser.add_argument(
        "--strict", action="store_true", help="refuse a damaged checkpoint (exit 4)"
    )
    parser.add_argument(
        "--allow-change",
        default="",
        metavar="FIELD[,FIELD]",
        help="frozen fields that may differ from the run that is continued",
    )
    flags, overrides = parser.parse_known_args(argv)
    config = configs.load(flags.config, overrides)
    workdir = Path(flags.workdir or configs.default_workdir(flags.config))
    storage.check_directory(workdir)
    source.check(config, workdir)
    notes = [] if flags.workdir else [f"workdir: {workdir} (--workdir chooses another)"]

    notes += process.platform_setup()
    with lock.of_workdir(workdir, notes.append, primary=process.is_primary()):
        from lm import train  # after the checks above: it imports much

        return train.train(
            config,
            workdir,
            strict=flags.strict,
            allow_change=tuple(filter(None, flags.allow_change.split(","))),
            notes=notes,
        )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code (see lm.host.process.run_main)."""
    argv = sys.argv[1:] if argv is None else argv
    return process.run_main(lambda: run(argv), debug="--debug" in argv)


if __name__ == "__main__":
    sys.exit(main())
