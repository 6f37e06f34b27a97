"""A check that a run that is killed and started again ends as one that was not.

Both runs are processes of their own, started by the command of a user.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lm.errors import CheckpointError, StorageError
from lm.host import storage

STEPS, EVERY = 9, 3
# The first process dies at its eighth step, when the first save is complete and the
# second may not be; the next process dies at its third step.
KILLS = ("step:8", "step:3")
LIMIT = 3600  # seconds for a process of the small run


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a check, a line of the table.

    Attributes:
      passed: None where the check does not apply to this config.
      largest: the largest relative difference.
      note: the first array that differs, or why the check does not apply.
    """

    check: str
    passed: bool | None
    largest: float | None
    note: str

    def line(self) -> str:
        word = {True: "pass", False: "FAIL", None: "none"}[self.passed]
        number = "" if self.largest is None else f"{self.largest:.1e}"
        return f"{self.check:<12}  {word:<4}  {number:>8}  {self.note}".rstrip()


def check(
    tree: dict[str, Any],
    straight: Path,
    killed: Path,
    environ: dict[str, str | None],
) -> Result:
    """Compares a run that was killed twice with one that was not.

    Raises:
      StorageError: a run takes too long.
      CheckpointError: a run ends with an unexpected exit code.
    """
    file = straight.with_name("small.py")
    storage.write_text(file, FILE.format(tree=json.dumps(json.dumps(tree))))
    start(file, straight, environ)
    for point in KILLS:
        start(file, killed, environ | {"LM_CRASHPOINT": point})
    start(file, killed, environ)
    log = (killed / "run.log").read_text()
    if log.count("continuing from step") != len(KILLS):
        return Result("resume", False, None, "a process that found no checkpoint")
    return same_end(straight, killed)


FILE = '''"""The small run of lm.verify."""

import json


def get_config(arg: str = "") -> dict:
    return json.loads({tree})
'''


def start(file: Path, workdir: Path, environ: dict[str, str | None]) -> None:
    """Runs the training command in a process of its own.

    Raises:
      StorageError: it takes too long.
      CheckpointError: it ends with an unexpected exit code.
    """
    command = [sys.executable, "-m", "lm.main", f"--config={file}"]
    command.append(f"--workdir={workdir}")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
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
        last = done.stdout.splitlines()[-2:]
        raise CheckpointError(
            " ".join(command),
            f"exit code {done.returncode} after {' | '.join(last)!r}",
            str(expected),
            "run this command alone to see all of its output",
        )


def same_end(straight: Path, killed: Path) -> Result:
    """Compares the ends of two runs: rows of metrics, data position and arrays."""
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
    """Reads the arrays of a checkpoint by path, on the host."""
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
