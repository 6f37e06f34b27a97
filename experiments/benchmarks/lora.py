"""Memory and time of an update with a low-rank adapter beside one of all weights.

    python -m experiments.benchmarks.lora --config=configs/lora.py:task=mrpc,dir=DIR \
        --config.init.source=hf:DIR [--batches=8] [--rounds=5] [--config.FIELD=VALUE]

Both sides train the same model on the same rows; one has the config's adapter, the
other none. They take turns, a round being `--batches` updates of each. The table shows
the parameters that are trained, the bytes of the state (all parameters, and the
optimiser's) and of what a checkpoint holds, what the compiler says an update needs
beside the state, and the median over the rounds.
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
from lm.hf.source import with_shape


class Side:
    """A run whose update is timed, with its first batches in memory."""

    def __init__(self, config, workdir: Path, count: int):
        config = runs.with_tokenizer(config, workdir)
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
        self.batches = [runs.on_devices(batch, program.mesh) for batch in rows]
        self.state = training.start(program.init(jax.random.key(0)))
        self.update = training.update.lower(self.state, self.batches[0]).compile()
        self.beside = self.update.memory_analysis().temp_size_in_bytes
        self.trained = number(self.state.params)
        self.all = self.trained + number(self.state.frozen)
        self.bytes = octets(self.state)
        self.saved = octets(self.state.saved())

    def seconds(self) -> float:
        start = time.perf_counter()
        for batch in self.batches:
            self.state, measured = self.update(self.state, batch)
        jax.block_until_ready(measured)
        return (time.perf_counter() - start) / len(self.batches)


def number(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def octets(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    flags, overrides = parser.parse_known_args()
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lora", "none"):
            # Rows of one length, so that there is one program to compare.
            fields = [*overrides, "--config.data.buckets=1"]
            fields += ["--config.adapter={'name': 'none'}"] if name == "none" else []
            workdir = Path(folder) / "run"
            config = configs.load(flags.config, fields, fill=with_shape(workdir))
            sides[name] = Side(config, workdir, flags.batches)
        rounds = [
            [side.seconds() for side in sides.values()] for _ in range(flags.rounds)
        ]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, load", end=" ")
    print(f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    shape = " x ".join(map(str, np.shape(sides["lora"].batches[0]["inputs"])))
    print(f"rows of {shape}\n")
    print("| adapter | trained | state | checkpoint | beside it | s a step |")
    print("|---|---|---|---|---|---|")
    for (name, side), times in zip(sides.items(), zip(*rounds)):
        sizes = (side.bytes, side.saved, side.beside)
        shown = " | ".join(f"{size / 2**20:.1f} MiB" for size in sizes)
        share = f"{side.trained:,} ({side.trained / side.all:.1%})"
        print(f"| {name} | {share} | {shown} | {statistics.median(times):.3f} |")
    ratios = [lora / whole for lora, whole in rounds]
    print(f"\ntime of a step, lora / none: {statistics.median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
