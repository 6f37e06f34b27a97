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
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.updates import Updates
from lm.config import resolve as configs
from lm.hf.source import with_shape


class Side(Updates):
    """A run whose updates are timed, with the sizes of its state."""

    def __init__(self, config, workdir: Path, count: int):
        super().__init__(config, workdir, count)
        self.compile()
        self.beside = self.update.largest.memory_analysis().temp_size_in_bytes
        self.trained = number(self.state.params)
        self.all = self.trained + number(self.state.frozen)
        self.bytes = octets(self.state)
        self.saved = octets(self.state.saved())

    def seconds(self) -> float:
        """Returns the seconds of an update."""
        return super().seconds() / len(self.batches)


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
