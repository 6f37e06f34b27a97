"""Training tokens per second of an LSTM language model, beside torch.nn.LSTM.

    python experiments/benchmarks/recurrent.py [--peer=PYTHON] [--units=200,650]
        [--rounds=5] [--steps=4] [--vocab=10000] [--cores=N]

One step: batch 20 x 35, float32, 2 layers, dropout 0.2, the output tied to the
embedding, all words in the softmax, the state carried from step to step, SGD with
gradients clipped to norm 0.25. The peer is PyTorch with `nn.LSTM`, run by the
interpreter PYTHON (by default this one, where it has torch) in a process of its own.
The two take turns, a round of steps each. The table shows medians over rounds of the
time on the clock and of the processor's time, over all cores that are used. Where
others use the machine, the second says more, and with `--cores=1` alone: threads that
wait for one another spend time too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from bert_step import ROOT, ask, processor

B, T, LAYERS = 20, 35, 2
DROPOUT, LR, CLIP = 0.2, 1.0, 0.25


def make_tokens(vocab: int) -> np.ndarray:
    """Draws rows of tokens, one more than a step reads."""
    return np.random.default_rng(0).integers(0, vocab, (B, T + 1), dtype=np.int32)


def ours(units: int, vocab: int) -> tuple[Callable[[], float], str]:
    """Returns a function that makes a step and returns its loss, and the versions."""
    sys.path.insert(0, str(ROOT))
    import jax

    from lm.models.rnn import Model
    from lm.objectives.causal_lm import Objective
    from lm.training import optim, step
    from lm.training.criterion import Plain
    from lm.updates.plain import Update

    model = Model(vocab, cell="lstm", num_layers=LAYERS, d_model=units, dropout=DROPOUT)
    objective = Objective(borders="ignore")
    params = jax.jit(step.make(model, objective).init)(jax.random.key(0))
    settings = optim.Optim("sgd", LR, clip=CLIP, weight_decay=0.0)
    rate = lambda _: np.float32(LR)  # noqa: E731
    optimizer = optim.make(settings, params, rate)
    training = step.make_training(
        Plain(model, objective),
        optimizer,
        rate,
        seed=0,
        grad_accum=1,
        gradient=Update(),
        rows=B,
    )
    update = jax.jit(training.update, donate_argnums=0)
    state = jax.jit(training.start)(params)
    tokens = make_tokens(vocab)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((B, T), np.float32),
        # No text begins here: the state goes on.
        "positions": np.broadcast_to(np.arange(1, T + 1, dtype=np.int32), (B, T)),
        "segment_ids": np.ones((B, T), np.int32),
    }
    batch = jax.device_put(batch)

    def run() -> float:
        nonlocal state
        state, measurements = update(state, batch)
        return float(measurements["train/loss"])

    return run, " ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))


def peer(units: int, vocab: int) -> tuple[Callable[[], float], str]:
    """Returns the same for PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    embed = nn.Embedding(vocab, units)
    nn.init.normal_(embed.weight, std=units**-0.5)
    lstm = nn.LSTM(units, units, LAYERS, dropout=DROPOUT, batch_first=True)
    drop = nn.Dropout(DROPOUT)
    parameters = [*embed.parameters(), *lstm.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LR)
    tokens = torch.tensor(make_tokens(vocab)).long()
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    state = tuple(torch.zeros(LAYERS, B, units) for _ in range(2))

    def run() -> float:
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        hidden, after = lstm(drop(embed(inputs)), state)
        state = tuple(part.detach() for part in after)
        logits = nn.functional.linear(drop(hidden).reshape(-1, units), embed.weight)
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item()

    return run, f"torch {torch.__version__}"


def serve(side: str, units: int, vocab: int, steps: int) -> None:
    """Answers a line of JSON, [seconds, processor's seconds] of a step, for a line."""
    run, versions = {"ours": ours, "peer": peer}[side](units, vocab)
    loss, _, _ = (run() for _ in range(3))
    print(json.dumps({"versions": versions, "loss": loss}), flush=True)
    for _ in sys.stdin:
        clock, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            run()
        spent = time.perf_counter() - clock, time.process_time() - used
        print(json.dumps([x / steps for x in spent]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="Python with torch")
    parser.add_argument("--units", default="200,650", help="sizes, with commas")
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--cores", type=int, help="cores for each side (default: all)")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-flags.cores :])
    if flags.serve:
        return serve(flags.serve, int(flags.units), flags.vocab, flags.steps)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    print(f"commit: {commit}\nhardware: {processor()}, cores: {cores}")
    print(f"load before: {os.getloadavg()[0]:.1f}; vocabulary {flags.vocab:,}\n")
    print("| units | side | versions | tokens/s | per processor's second | loss |")
    print("|---|---|---|---|---|---|")
    lines = [compare(int(units), flags) for units in flags.units.split(",")]
    print("\n" + "\n".join(lines))


def compare(units: int, flags: argparse.Namespace) -> str:
    """Prints the rows of the table for a size; returns the line with the ratios."""
    given = [f"--units={units}", f"--vocab={flags.vocab}", f"--steps={flags.steps}"]
    sides = {
        side: subprocess.Popen(
            [python, __file__, f"--serve={side}", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side, python in (("ours", sys.executable), ("peer", flags.peer))
    }
    facts = {side: ask(process) for side, process in sides.items()}
    spent: dict[str, list] = {side: [] for side in sides}
    for _ in range(flags.rounds):
        for side, process in sides.items():
            spent[side].append(ask(process, "go\n"))
    for side, process in sides.items():
        process.stdin.close()
        process.wait()
        clock, used = (statistics.median(times) for times in zip(*spent[side]))
        print(
            f"| {units} | {side} | {facts[side]['versions']} | {B * T / clock:,.0f} "
            f"| {B * T / used:,.0f} | {facts[side]['loss']:.3f} |",
            flush=True,
        )
    ratios = [
        sorted(
            theirs[n] / mine[n] for theirs, mine in zip(spent["peer"], spent["ours"])
        )
        for n in range(2)
    ]
    clock, used = (
        f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"
        for each in ratios
    )
    return f"{units} units, ours / peer: {clock} by the clock, {used} by the processor"


if __name__ == "__main__":
    main()
