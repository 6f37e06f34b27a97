"""Command: runs a config's evaluations on a checkpoint of a run.

python -m lm.evaluate --workdir=DIR [--checkpoint=latest|best|STEP] [--only=NAME]
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

from lm.config import files
from lm.config import resolve as configs
from lm.config.flags import Parser, add_run, which_step
from lm.errors import ConfigError
from lm.hf import source
from lm.host import process

USAGE = """python -m lm.evaluate --workdir=DIR [--checkpoint=latest|best|STEP]
    [--only=NAME[,NAME]] [--weights=averaged|trained]
    [--evals=FILE[:ARG] | --config=FILE[:ARG]] [--config.a.b=value ...]

Runs the evaluations of a config on a checkpoint and prints one JSON object: the
step and every metric; null stands for one that is not defined, and a line on
stderr tells why. The config is the run's own; with --evals the evaluations are
those of another, and with --config all but the run's weights."""
# Evaluating neither stops a run nor keeps a checkpoint, so that these fields, which may
# name an evaluation that was replaced, are not used.
FOLLOWED = ["--config.checkpoint.best=none", "--config.stop.metric=none"]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = Parser("lm.evaluate", USAGE)
    add_run(parser)
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="the config whose evaluations are run (default: the run's own)",
    )
    parser.add_argument(
        "--evals",
        metavar="FILE[:ARG]",
        help="the config whose evals replace those of the run (default: none)",
    )
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        help="the evaluations to run, by their names in evals (default: all)",
    )
    flags, given = parser.parse_known_args(argv)
    overrides = [*FOLLOWED, *given]
    workdir = Path(flags.workdir)
    which = which_step(flags.checkpoint)
    if flags.config and flags.evals:
        raise ConfigError("--evals", "--config beside it", "one of the two")
    if flags.config:
        fill = source.with_shape(workdir)
        config = configs.load(flags.config, overrides, fill=fill)
    else:
        evals = flags.evals and files.read_file(flags.evals).get("evals", {})
        config = configs.of_run(workdir, overrides, evals)
    config = only(config, flags.only)
    process.platform_setup()

    import jax

    from lm import evaluations
    from lm import run as runs

    def note(line: str) -> None:
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    runs.check(config)
    opened = runs.open_run(
        workdir, which, config=config, weights=flags.weights, note=note
    )
    evaluators = evaluations.open_evaluators(
        opened.config, workdir, opened.corpus, opened.program
    )
    found: dict[str, float] = {"step": opened.step}
    with opened.on_mesh():
        for evaluate in evaluators.values():
            found |= evaluate(opened.params, opened.step)
    if jax.process_index() == 0:
        print(to_json(found, note))
    return 0


def only(config: configs.Config, names: str | None) -> configs.Config:
    """Returns a config with only some of its evaluations.

    Args:
      names: their names, separated by commas; None is all.

    Raises:
      ConfigError: there is no such evaluation, or the config has none.
    """
    if not config.evals:
        raise ConfigError("evals", "no evaluation", "at least one")
    if names is None:
        return config
    for name in names.split(","):
        if name not in config.evals:
            raise configs.no_such("--only", name, config.evals)
    chosen = {name: config.evals[name] for name in names.split(",")}
    return configs.Config(config | {"evals": configs.Config(chosen)})


def to_json(found: dict[str, float], note: Callable[[str], None]) -> str:
    """Formats metrics as JSON; a value that is not finite is null, with a note."""
    for name, value in found.items():
        if not math.isfinite(value):
            note(f"{name}: null, for its value is {value}, which JSON cannot hold")
    finite = {k: v if math.isfinite(v) else None for k, v in found.items()}
    return json.dumps(finite, indent=1, allow_nan=False)


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
