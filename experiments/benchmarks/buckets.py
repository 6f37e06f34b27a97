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
import time
from pathlib import Path

import jax
import numpy as np

from lm import run as runs
from lm.config import resolve as configs
from lm.data import pipeline
from lm.training.step import PerShape


class Side:
    """A run whose updates are timed, with its first batches in memory."""

    def __init__(self, config, workdir: Path, count: int):
        corpus = runs.open_corpus(config, workdir, lambda line: None)
        program = runs.open_program(config, corpus)
        training = runs.open_training(
            config, corpus, program, runs.durations(config, corpus)
        )
        rows = pipeline.batches(
            corpus.stream,
            batch_size=config.batch_size,
            first_step=0,
            last_step=count,
            data=configs.build(pipeline.Data, config.data),
            shares=corpus.shares,
        )
        batches = list(rows)
        self.tokens = sum(corpus.objective.tokens(batch) for batch in batches)
        self.positions = sum(np.size(batch["inputs"]) for batch in batches)
        self.shapes = len({batch["inputs"].shape for batch in batches})
        self.batches = [runs.on_devices(batch, program.mesh) for batch in batches]
        self.state = training.start(program.init(jax.random.key(0)))
        self.update = PerShape(training.update)
        for batch in self.batches:
            if not self.update.knows(batch):
                self.update.compile(self.state, batch)

    def seconds(self) -> float:
        start = time.perf_counter()
        for batch in self.batches:
            self.state, measured = self.update(self.state, batch)
        jax.block_until_ready(measured)
        return time.perf_counter() - start


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
