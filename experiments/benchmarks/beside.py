"""Speed of this checkout beside another commit of the same project, in one run.

    git worktree add ../before COMMIT
    python experiments/benchmarks/beside.py ../before --text=input.txt [--rounds=3]

Three measures, each by the scripts of the checkout that is measured, the two checkouts
in turn: a BERT-base pre-training step (`bert_step.py`), generation of GPT-2-small size
at batch 1 and 8 (`generate.py`), and the whole command of a character model
(`configs/shakespeare_char.py:cpu` on the text, start and compilation included). The
table shows medians over rounds and the median of the rounds' ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bert_step import HUGE_PAGES, ROOT, B, T, ask, processor
from nanogpt import timed

HERE = Path("experiments") / "benchmarks"


def serve(checkout: Path, script: str, *flags: str) -> subprocess.Popen:
    """One side of a benchmark of that checkout, answering a line of JSON for a line."""
    command = [sys.executable, str(checkout / HERE / script), "--serve=ours", *flags]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkout,
        env=os.environ | HUGE_PAGES,
    )
    ask(process)  # what it is, once it is compiled or ready to
    return process


def steps(checkout: Path) -> tuple[Callable[[], float], subprocess.Popen]:
    """A function that gives the seconds of a BERT-base step, median of three."""
    process = serve(checkout, "bert_step.py", "--steps=3")
    return lambda: statistics.median(ask(process, "go\n")), process


def answers(checkout: Path, rows: int) -> tuple[Callable[[], float], subprocess.Popen]:
    """A function that gives the seconds of 128 tokens for so many rows."""
    process = serve(checkout, "generate.py", "--tokens=128")
    ask(process, f"{rows}\n")  # compiles
    return lambda: ask(process, f"{rows}\n")["wall"], process


def characters(checkout: Path, text: Path, count: int) -> float:
    """Seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        config = f"--config=configs/shakespeare_char.py:cpu,text={text}"
        command = [sys.executable, "-m", "lm.main", config, f"--workdir={folder}/run"]
        command.append(f"--config.steps={count}")
        return timed(command, cwd=checkout, env=os.environ | HUGE_PAGES)[0]


def commit(checkout: Path) -> str:
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="another checkout of the project")
    parser.add_argument(
        "--text", type=Path, help="of the character model; else not run"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=1000, help="of the character model"
    )
    flags = parser.parse_args()
    checkouts = [ROOT, flags.other.resolve()]

    def served(open_side: Callable) -> list[list[float]]:
        sides = [open_side(checkout) for checkout in checkouts]
        rounds = [[measure() for measure, _ in sides] for _ in range(flags.rounds)]
        for _, process in sides:
            process.stdin.close()
            process.wait()
        return rounds

    print(f"command: python {HERE / 'beside.py'} {' '.join(sys.argv[1:])}")
    print(f"ours {commit(checkouts[0])}, other {commit(checkouts[1])}")
    print(f"hardware: {processor()}, {os.cpu_count()} cores\n")
    print("| measure | ours, s | other, s | other / ours | range |")
    print("|---|---|---|---|---|")
    report(f"BERT-base step, {B} x {T}", served(steps))
    for rows in (1, 8):
        name = f"128 tokens of GPT-2 small size, batch {rows}"
        report(name, served(lambda checkout, rows=rows: answers(checkout, rows)))
    if flags.text:
        text = flags.text.resolve()
        rounds = [
            [characters(checkout, text, flags.steps) for checkout in checkouts]
            for _ in range(flags.rounds)
        ]
        report(f"character model, {flags.steps} steps, whole command", rounds)


def report(name: str, rounds: list[list[float]]) -> None:
    ours, other = (statistics.median(side) for side in zip(*rounds))
    ratios = [theirs / mine for mine, theirs in rounds]
    print(
        f"| {name} | {ours:.3f} | {other:.3f} | {statistics.median(ratios):.2f} "
        f"| {min(ratios):.2f} to {max(ratios):.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
