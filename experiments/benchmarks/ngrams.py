"""n-grams: counting, estimating and queries beside KenLM, in one run.

    python experiments/benchmarks/ngrams.py DIR --lmplz=PROGRAM --kenlm=PYTHON
        [--order=5] [--rounds=3]

DIR has train.txt.gz and test.txt of WikiText-2. PROGRAM is KenLM's `lmplz`; PYTHON has
the package kenlm. The two sides take turns: whole commands that count and estimate
(ours with the start of Python, the index of the rows and the checkpoint; theirs with
the ARPA file), then queries of the whole test set, all lines. Both sides query the same
model: kenlm reads the ARPA file that we write.
"""

import argparse
import gzip
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "@unk@"  # lmplz reserves <unk>
# Reads lines, scores each with its end, and prints seconds, words and log10.
QUERY = """
import json, sys, time, kenlm
model = kenlm.Model(sys.argv[1])
lines = open(sys.argv[2], encoding="utf-8").read().split("\\n")[:-1]
for _ in sys.stdin:
    began = time.perf_counter()
    total = sum(model.score(line) for line in lines)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, sum(len(x.split()) + 1 for x in lines), total]))
    sys.stdout.flush()
"""


def timed(command: list[str], log: Path, **given) -> tuple[float, float]:
    """Runs a command; returns its seconds on the clock and of the processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(log, "ab") as out:
        subprocess.run(command, check=True, stdout=out, stderr=out, **given)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def fit(flags: argparse.Namespace, workdir: Path, log: Path) -> tuple[float, float]:
    """Counts and estimates by the whole command, without evaluations."""
    config = f"configs/ngram.py:dir={flags.dir},order={flags.order}"
    command = [sys.executable, "-m", "lm.main", f"--config={config}"]
    command += [f"--workdir={workdir}", "--config.evals={}"]
    return timed(command, log, cwd=ROOT)


def queries(workdir: Path, texts: list[str]) -> Callable[[], list[float]]:
    """Returns a function that queries all texts: seconds, words, log10, lookup only."""
    import jax
    import numpy as np

    from lm import run as runs
    from lm.data.scoring import Settings, Text

    opened = runs.open_run(workdir, note=lambda line: None)
    asked = [Text(text) for text in texts]

    def ask() -> list[float]:
        spent = 0.0
        with opened.on_mesh():
            scorer = runs.make_scorer(opened.corpus, opened.program, opened.params)

            def judge(batch: dict[str, np.ndarray]):
                nonlocal spent
                before = time.perf_counter()
                found = jax.device_get(scorer.judge(batch))
                spent += time.perf_counter() - before
                return found

            began = time.perf_counter()
            counted = type(scorer)(
                scorer.objective, scorer.codec, None, judge, tokens=1 << 16
            )
            scores = counted(asked, Settings(end=True))
            seconds = time.perf_counter() - began
        words = sum(len(score.ids) for score in scores)
        total = sum(score.total for score in scores) / math.log(10)
        return [seconds, words, total, spent]

    ask()  # compiles
    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--lmplz", required=True)
    parser.add_argument("--kenlm", required=True)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, log = Path(folder), Path(folder) / "log"
        train, test = place / "train.txt", place / "test.txt"
        packed = (flags.dir / "train.txt.gz").read_bytes()
        text = gzip.decompress(packed).decode()
        train.write_text(text.replace("<unk>", UNKNOWN), encoding="utf-8")
        plain = (flags.dir / "test.txt").read_text(encoding="utf-8")
        test.write_text(plain, encoding="utf-8")
        commands: dict[str, list[tuple[float, float]]] = {"ours": [], "lmplz": []}
        lmplz = [flags.lmplz, "-o", str(flags.order), "-S", "1G", "--text", str(train)]
        for number in range(flags.rounds):
            commands["ours"].append(fit(flags, place / f"run{number}", log))
            arpa = ["--arpa", str(place / "theirs.arpa")]
            commands["lmplz"].append(timed([*lmplz, *arpa], log))
            print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for name, found in commands.items():
            clock, used = (statistics.median(column) for column in zip(*found))
            print(f"{name}: {clock:.1f} s on the clock, {used:.1f} s of processors")
        ours_arpa = place / "ours.arpa"
        convert = [sys.executable, "-m", "lm.convert", f"--to=arpa:{ours_arpa}"]
        timed([*convert, f"--workdir={place / 'run0'}"], log, cwd=ROOT)
        process = subprocess.Popen(
            [flags.kenlm, "-c", QUERY, str(ours_arpa), str(test)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        ask = queries(place / "run0", plain.split("\n")[:-1])
        sides: dict[str, list[list[float]]] = {"ours": [], "kenlm": []}
        for _ in range(flags.rounds):
            sides["ours"].append(ask())
            process.stdin.write("\n")
            process.stdin.flush()
            sides["kenlm"].append(json.loads(process.stdout.readline()))
        process.stdin.close()
        process.wait()
        for name, rows in sides.items():
            seconds = statistics.median(row[0] for row in rows)
            _, words, total = rows[0][:3]
            line = f"{name}: {words / seconds:,.0f} queries/s"
            if name == "ours":
                only = statistics.median(row[3] for row in rows)
                line += f" ({words / only:,.0f} without tokens and batches)"
            print(f"{line}, {words:,} words, perplexity {10 ** (-total / words):.4f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
