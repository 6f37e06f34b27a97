"""Speed of an epoch in length buckets beside one with every row padded to `seq_len`.

    python -m experiments.benchmarks.buckets --config=configs/sst2.py:scratch,dir=DIR \
        [--batches=64] [--rounds=3] [--config.FIELD=VALUE ...]

Both sides train the same model on the same rows. They take turns, a round being
`--batches` updates of each; the table shows the share of the positions that are padding
in as many batches, the shapes compiled, and medians over the rounds.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.updates import Updates
from lm.config import resolve as configs


class Side(Updates):
    """A run whose updates are timed, with what its batches hold."""

    def __init__(self, config, workdir: Path, count: int):
        super().__init__(config, workdir, count)
        self.tokens = sum(self.objective.tokens(batch) for batch in self.batches)
        self.positions = sum(np.size(batch["inputs"]) for batch in self.batches)
        self.shapes = len({batch["inputs"].shape for batch in self.batches})
        self.compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    flags, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for count in (8, 1):
            fields = [*overrides, f"--config.data.buckets={count}"]
            config = configs.load(flags.config, fields)
            sides[count] = Side(config, Path(folder) / "run", flags.batches)
        rounds = [
            [side.seconds() for side in sides.values()] for _ in range(flags.rounds)
        ]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, load", end=" ")
    print(f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| buckets | padding | shapes | seconds | tokens/s |")
    print("|---|---|---|---|---|")
    for (count, side), times in zip(sides.items(), zip(*rounds)):
        median = statistics.median(times)
        print(
            f"| {count} | {1 - side.tokens / side.positions:.0%} | {side.shapes} "
            f"| {median:.2f} | {side.tokens / median:,.0f} |"
        )
    tokens = sides[8].tokens / sides[1].tokens
    ratios = [tokens * padded / bucketed for bucketed, padded in rounds]
    print(f"\ntimes the tokens/s: {statistics.median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
