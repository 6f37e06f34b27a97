"""Tokens per second of one BERT-base pre-training step, beside Hugging Face's.

    python experiments/benchmarks/bert_step.py [--peer=PYTHON] [--rounds=5] [--steps=3]

One step: batch 8 x 128, float32, dropout 0.1, 20 masked places in each row and
next-sentence prediction, AdamW (decay 0.01, not of biases and norms), gradients clipped
to norm 1, a warm-up and linear decay. The peer is `transformers.BertForPreTraining` in
PyTorch with the same batch and settings, run by the interpreter PYTHON (by default this
one, where it has torch) in a process of its own. The two take turns, a round of steps
each; the table shows the medians over rounds.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
B, T, K, V = 8, 128, 20, 30522
LR, DECAY, CLIP, WARMUP, STEPS = 1e-4, 0.01, 1.0, 100, 1000
NO_DECAY = ("bias", "norm")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read by glibc at the start


def make_batch() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    inputs = draw.integers(1000, V, (B, T), dtype=np.int32)
    places = np.stack([np.sort(draw.permutation(T)[:K]) for _ in range(B)])
    half = np.broadcast_to(np.arange(T) >= T // 2, (B, T))
    return {
        "inputs": inputs,
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)).copy(),
        "segment_ids": np.ones((B, T), np.int32),
        "token_types": half.astype(np.int32),
        "target_positions": places.astype(np.int32),
        "targets": np.take_along_axis(inputs, places, 1),
        "weights": np.ones((B, K), np.float32),
        "labels": draw.integers(0, 2, (B,), dtype=np.int32),
        "label_weights": np.ones((B,), np.float32),
    }


def ours() -> tuple[Callable[[], float], str]:
    """A function that runs one step and returns its loss, and the versions used."""
    sys.path.insert(0, str(ROOT))
    import jax

    from lm.config import resolve as config
    from lm.models.presets import PRESETS
    from lm.models.transformer import Model
    from lm.objectives.mlm import Objective
    from lm.training import optim, step
    from lm.training.criterion import Plain
    from lm.updates.plain import Update

    objective = Objective(next="nsp")
    model = Model(**PRESETS["bert_base"], heads=objective.heads())
    functions = step.make(model, objective)
    settings = optim.Optim(lr=LR, warmup=WARMUP, weight_decay=DECAY, clip=CLIP)
    sizes = {"batch_size": B, "seq_len": T, "examples_per_epoch": None}
    steps_of = functools.partial(config.to_steps, **sizes, total_steps=STEPS)
    schedule = optim.schedule(settings, steps_of)
    params = jax.jit(functions.init)(jax.random.key(0))
    training = step.make_training(
        Plain(model, objective),
        optim.make(settings, params, schedule),
        schedule,
        seed=0,
        grad_accum=1,
        gradient=Update(),
    )
    update = jax.jit(training.update, donate_argnums=0)
    state = jax.jit(training.start, donate_argnums=0)(params)
    batch = jax.device_put(make_batch())

    def run() -> float:
        nonlocal state
        state, measurements = update(state, batch)
        return float(measurements["train/loss"])

    names = ("jax", "flax", "optax")
    return run, " ".join(f"{name} {version(name)}" for name in names)


def peer() -> tuple[Callable[[], float], str]:
    """The same for PyTorch, with the faster of its two AdamW implementations."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    batch = {name: torch.tensor(a).long() for name, a in make_batch().items()}
    labels = torch.full((B, T), -100)
    labels.scatter_(1, batch["target_positions"], batch["targets"])
    inputs = {
        "input_ids": batch["inputs"],
        "attention_mask": torch.ones(B, T).long(),
        "token_type_ids": batch["token_types"],
        "labels": labels,
        "next_sentence_label": batch["labels"],
    }
    config = transformers.BertConfig(vocab_size=V, attn_implementation="sdpa")
    model = transformers.BertForPreTraining(config).train()

    def make_step(kind: str) -> Callable[[], float]:
        groups = [{"params": [], "weight_decay": decay} for decay in (DECAY, 0.0)]
        for name, parameter in model.named_parameters():
            plain = any(word in name.lower() for word in NO_DECAY)
            groups[plain]["params"].append(parameter)
        optimizer = torch.optim.AdamW(groups, lr=LR, **{kind: True})
        schedule = transformers.get_linear_schedule_with_warmup(
            optimizer, WARMUP, STEPS
        )

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            return loss.item()

        return step

    times = {}
    for kind in ("fused", "foreach"):
        step = make_step(kind)
        step()
        times[kind] = min(seconds(step) for _ in range(2)), step
    kind = min(times, key=lambda kind: times[kind][0])
    versions = f"torch {torch.__version__} transformers {transformers.__version__}"
    return times[kind][1], f"{versions}, AdamW {kind}"


def seconds(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def serve(make: Callable, steps: int) -> None:
    """One side in its own process: a line of JSON for every line that it is sent."""
    step, versions = make()
    first = step()
    print(json.dumps({"versions": versions, "loss": first}), flush=True)
    for _ in sys.stdin:
        print(json.dumps([seconds(step) for _ in range(steps)]), flush=True)


def start(python: str, side: str, options: argparse.Namespace) -> subprocess.Popen:
    return subprocess.Popen(
        [python, __file__, f"--serve={side}", f"--steps={options.steps}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (HUGE_PAGES if options.huge_pages else {}),
    )


def ask(process: subprocess.Popen, line: str = "") -> object:
    if line:
        process.stdin.write(line)
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a side ended early, with exit code {process.wait()}")
    return json.loads(answer)


def has_torch(python: str) -> bool:
    test = "import torch, transformers"
    return subprocess.run([python, "-c", test], capture_output=True).returncode == 0


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="Python with torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    parser.add_argument(
        "--huge-pages", action="store_true", help="both sides: memory in huge pages"
    )
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        sides = {"ours": ours, "peer": peer}
        return serve(sides[options.serve], options.steps)

    sides = {"ours": start(sys.executable, "ours", options)}
    if has_torch(options.peer):
        sides["peer"] = start(options.peer, "peer", options)
    else:
        print(f"{options.peer} has no torch and transformers: ours alone")
    facts = {name: ask(process) for name, process in sides.items()}
    times = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, process in sides.items():
            times[name].append(statistics.median(ask(process, "go\n")))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    report(facts, times, options)


def report(facts: dict, times: dict, options: argparse.Namespace) -> None:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    command = " ".join(["python experiments/benchmarks/bert_step.py", *sys.argv[1:]])
    print(f"command: {command}\ncommit: {commit}")
    print(f"hardware: {processor()}, {os.cpu_count()} cores")
    print(
        f"batch {B} x {T}, {options.rounds} rounds of {options.steps} steps, seed 0\n"
    )
    print("| side | versions | first loss | step, s (median) | tokens/s | range |")
    print("|---|---|---|---|---|---|")
    for name, rounds in times.items():
        middle = statistics.median(rounds)
        spread = f"{B * T / max(rounds):.0f} to {B * T / min(rounds):.0f}"
        print(
            f"| {name} | {facts[name]['versions']} | {facts[name]['loss']:.3f} "
            f"| {middle:.3f} | {B * T / middle:.0f} | {spread} |"
        )
    if "peer" in times:
        pairs = zip(times["peer"], times["ours"], strict=True)
        ratios = sorted(theirs / mine for theirs, mine in pairs)
        print(
            f"\nours / peer: {statistics.median(ratios):.2f} "
            f"(median of the rounds; {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
