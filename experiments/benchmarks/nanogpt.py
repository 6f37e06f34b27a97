"""Time and loss of character Shakespeare on a CPU, beside nanoGPT.

    python experiments/benchmarks/nanogpt.py --text=input.txt --nanogpt=DIR \
        [--peer=PYTHON] [--rounds=1] [--steps=2000]

Both train the CPU recipe of nanoGPT's README: 4 layers, 4 heads, 128 wide, context 64,
batch 12, 2,000 steps, dropout 0; `configs/shakespeare_char.py:cpu` here, `train.py` of
the checkout DIR there, run by PYTHON (which needs torch, numpy and requests). The time
is that of the whole command, start, compilation, evaluations and checkpoints included:
theirs estimates the loss on 20 batches of each part every 250 steps, ours takes the
whole held-out part four times. The two take turns.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as launch/local.sh does


def timed(command: list[str], **options) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, **options
    )
    return time.perf_counter() - start, done.stdout


def ours(text: Path, steps: int) -> tuple[float, float]:
    """(seconds, loss over the whole held-out part)."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        config = f"--config=configs/shakespeare_char.py:cpu,text={text}"
        command = [sys.executable, "-m", "lm.main", config, f"--workdir={workdir}"]
        command.append(f"--config.steps={steps}")
        seconds, _ = timed(command, cwd=ROOT, env=os.environ | HUGE_PAGES)
        last = (workdir / "metrics.jsonl").read_text().splitlines()[-1]
        return seconds, json.loads(last)["heldout/lm_loss"]


def theirs(text: Path, steps: int, checkout: Path, python: str) -> tuple[float, float]:
    """(seconds, loss on 20 random batches of the held-out part)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "nanogpt"
        shutil.copytree(checkout, place, ignore=shutil.ignore_patterns(".git"))
        data = place / "data" / "shakespeare_char"
        shutil.copy(text, data / "input.txt")
        subprocess.run(
            [python, str(data / "prepare.py")], check=True, stdout=subprocess.PIPE
        )
        settings = {
            "device": "cpu",
            "compile": False,
            "eval_iters": 20,
            "log_interval": 100,
            "block_size": 64,
            "batch_size": 12,
            "n_layer": 4,
            "n_head": 4,
            "n_embd": 128,
            "max_iters": steps,
            "lr_decay_iters": steps,
            "dropout": 0.0,
        }
        command = [python, "train.py", "config/train_shakespeare_char.py"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        seconds, said = timed(command, cwd=place)
        return seconds, float(re.findall(r"val loss (\d+\.\d+)", said)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    flags = parser.parse_args()
    text = flags.text.resolve()
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "nanoGPT": []}
    for _ in range(flags.rounds):
        found["nanoGPT"].append(theirs(text, flags.steps, flags.nanogpt, flags.peer))
        found["ours"].append(ours(text, flags.steps))
    medians = {}
    for side, runs in found.items():
        seconds, losses = zip(*runs)
        medians[side] = statistics.median(seconds)
        shown = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"{side:8} {medians[side]:7.1f} s   held-out loss {shown}")
    print(f"time of ours / nanoGPT: {medians['ours'] / medians['nanoGPT']:.2f}")


if __name__ == "__main__":
    main()
