"""Speed of the scaled scan over linear chains beside the scan in log space.

    python -m experiments.benchmarks.chain [--rounds=9]

Both are `lm.ops.chain.log_partition`, with its gradient with respect to emissions and
transitions. The two take turns; the table shows medians over rounds, the median of the
rounds' ratios (above 1 the scaled scan is faster), and the time of Viterbi's scan.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp

from lm.ops import chain as chains

SHAPES = [(32, 64, 17), (1, 2048, 17), (8, 64, 64), (64, 32, 9)]


def timed(run, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return 1e3 * (time.perf_counter() - start)


def gradient(log_space: bool):
    """The sum of log Z over the rows, and its gradient."""

    def total(chain, segments):
        return chains.log_partition(chain, segments, log_space=log_space).sum()

    return jax.jit(jax.value_and_grad(total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, load", end=" ")
    print(f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| B x T x K | scaled, ms | log space, ms | ratio | range | Viterbi, ms |")
    print("|---|---|---|---|---|---|")
    for B, T, K in SHAPES:
        keys = jax.random.split(jax.random.key(0))
        chain = chains.Chain(
            jax.random.normal(keys[0], (B, T, K)), jax.random.normal(keys[1], (K, K))
        )
        segments = jnp.ones((B, T), jnp.int32)

        sides = [gradient(False), gradient(True), jax.jit(chains.best)]
        for side in sides:
            timed(side, chain, segments)  # compiles
        rounds = [
            [timed(side, chain, segments) for side in sides]
            for _ in range(flags.rounds)
        ]
        fast, slow, best = (statistics.median(times) for times in zip(*rounds))
        ratios = [slow / fast for fast, slow, _ in rounds]
        print(
            f"| {B} x {T} x {K} | {fast:.2f} | {slow:.2f} "
            f"| {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {best:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
