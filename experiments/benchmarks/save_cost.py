"""What saving costs: bert_small, saved every so many steps, beside never saved.

    python -m experiments.benchmarks.save_cost [--preset=bert_small] [--every=100]
        [--steps=200] [--workdir=DIR]

Both runs are the real command on the built-in text. Printed are the median time of a
step, how long the loop stood still for each save (the copy from the devices, and the
wait for the save before), how long the background took for arrays, hashes and commit,
and the cost of saving as a share of the time of the steps.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from lm import main
from lm.workdir import checkpoint


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--preset", default="bert_small")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workdir", type=Path)
    return parser.parse_args()


def train(flags: argparse.Namespace, workdir: Path, every: int) -> list[dict]:
    """Runs the command; returns the rows of its times."""
    code = main.main(
        [
            f"--config=configs/bert_tiny.py:preset={flags.preset}",
            f"--workdir={workdir}",
            f"--config.steps={flags.steps}",
            f"--config.checkpoint.every={every}",
            "--config.evals={}",
            "--config.optim.warmup=10",
            "--config.batch_size=16",
        ]
    )
    assert code == 0
    return [json.loads(row) for row in (workdir / "timing.jsonl").open()]


def measured(flags: argparse.Namespace, place: Path) -> dict[str, float]:
    stalls: list[float] = []
    behind: list[float] = []
    save, finish = checkpoint.Checkpointer.save, checkpoint.Checkpointer._finish

    def timed(into: list[float], call):
        def act(*arguments, **keywords):
            began = time.perf_counter()
            result = call(*arguments, **keywords)
            into.append(time.perf_counter() - began)
            return result

        return act

    checkpoint.Checkpointer.save = timed(stalls, save)
    checkpoint.Checkpointer._finish = timed(behind, finish)
    rows = train(flags, place / "saving", flags.every)
    still = train(flags, place / "still", flags.steps)
    checkpoint.Checkpointer.save, checkpoint.Checkpointer._finish = save, finish

    def total(rows: list[dict]) -> float:
        """Seconds from the second step to the last but one, savings within it."""
        return rows[-2]["time"] - rows[1]["time"]

    step = statistics.median(row["step_seconds"] for row in still[2:])
    return {
        "step_seconds": step,
        "stall_seconds": statistics.median(stalls[:-1] or stalls),
        "background_seconds": statistics.median(behind[:-1] or behind),
        "stall_percent": 100 * statistics.median(stalls) / (flags.every * step),
        "all_percent": 100 * (total(rows) / total(still) - 1),
    }


if __name__ == "__main__":
    given = parse()
    with tempfile.TemporaryDirectory() as made:
        found = measured(given, given.workdir or Path(made))
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
