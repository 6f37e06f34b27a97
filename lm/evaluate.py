"""Command: runs a config's evaluations on a checkpoint of a run.

python -m lm.evaluate --workdir=DIR [--checkpoint=latest|best|STEP] [--config...]
"""

import json
import sys
from pathlib import Path

from lm.config import resolve as configs
from lm.config.flags import CHECKPOINT, Parser, which_step
from lm.errors import ConfigError
from lm.host import process

USAGE = """python -m lm.evaluate --workdir=DIR [--checkpoint=latest|best|STEP]
    [--config=FILE[:ARG]] [--config.a.b=value ...]

Runs the evaluations of a config on a checkpoint and prints one JSON object: the
step and every metric. The config is the run's own, or that of --config, whose
evaluations are then run on the run's weights."""


def run(argv: list[str]) -> int:
    parser = Parser("lm.evaluate", USAGE)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="WHICH", help=CHECKPOINT
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="the config whose evaluations are run (default: the run's own)",
    )
    flags, overrides = parser.parse_known_args(argv)
    workdir = Path(flags.workdir)
    which = which_step(flags.checkpoint)
    if flags.config:
        config = configs.load(flags.config, overrides)
    else:
        config = configs.of_run(workdir, overrides)
    process.platform_setup()

    import jax

    from lm import run as runs
    from lm import transfer
    from lm.workdir import checkpoint

    def note(line: str) -> None:
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    config = runs.with_tokenizer(config, workdir)
    with checkpoint.reading(workdir, which) as step:
        corpus = runs.open_corpus(config, workdir, note)
        program = runs.open_program(config, corpus)
        evaluators = runs.open_evaluators(config, workdir, corpus, program)
        if not evaluators:
            raise ConfigError("evals", "no evaluation", "at least one")
        init = checkpoint.Init(source=str(workdir), checkpoint=int(step.name))
        with jax.set_mesh(program.mesh):
            params, _ = transfer.load_params(init, runs.shapes_in(step, program))
            found: dict[str, float] = {"step": int(step.name)}
            for evaluate in evaluators.values():
                found |= evaluate(params, int(step.name))
    if jax.process_index() == 0:
        print(json.dumps(found, indent=1))
    return 0


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
