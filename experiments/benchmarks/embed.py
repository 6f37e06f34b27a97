"""Speed of lm.embed beside sentence-transformers: one model, one file, one run.

    python -m experiments.benchmarks.embed --model=DIR --texts=FILE.csv --peer=PYTHON

The two take turns in processes of their own on all cores, float32, batch 32: ours
`lm.embedder`, the peer `SentenceTransformer.encode` as it ships, which sorts the texts
by length too. Compilation and one warm-up pass over the texts are not measured. The
figures are medians over rounds, and the ratio is the median of the rounds' ratios; the
vectors of both are compared. PYTHON is one that has sentence-transformers.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PEER = """
import json, sys, time
import numpy as np
from sentence_transformers import SentenceTransformer, __version__
texts = json.load(open(sys.argv[2]))
model = SentenceTransformer(sys.argv[1], device="cpu")
encode = lambda: model.encode(texts, batch_size=32, show_progress_bar=False)
np.save(sys.argv[3], encode())
print(f"sentence-transformers {__version__}", flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    encode()
    print(time.perf_counter() - began, flush=True)
"""


def serve(model: str, texts: str, out: str) -> None:
    """Our side: answers each line with the seconds of a pass over the texts."""
    from lm import embedder

    given = json.loads(Path(texts).read_text())
    opened = embedder.open_run(f"hf:{model}", note=lambda line: None)
    made = embedder.open_embedder(opened, batch_size=32)
    with opened.on_mesh():
        np.save(out, made.embed(given))
        print("lm", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            made.embed(given)
            print(time.perf_counter() - began, flush=True)


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def ask(process: subprocess.Popen) -> float:
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True, help="CSV; its first two columns")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1024)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        serve(flags.model, *flags.serve)
        return
    with open(flags.texts, newline="", encoding="utf-8") as file:
        texts = [cell for row in csv.reader(file) for cell in row[:2]][: flags.limit]
    place = Path(tempfile.mkdtemp())
    given, mine, theirs = (place / f"embed-{n}" for n in ("in.json", "a.npy", "b.npy"))
    given.write_text(json.dumps(texts))
    own = [sys.executable, "-m", "experiments.benchmarks.embed", "--peer=", "--texts="]
    own += [f"--model={flags.model}", "--serve", str(given), str(mine)]
    sides = {
        "ours": start(own),
        "peer": start([flags.peer, "-c", PEER, flags.model, str(given), str(theirs)]),
    }
    for name, process in sides.items():
        assert process.stdout
        print(f"{name}: {process.stdout.readline().strip()}")
    gap = np.abs(np.load(mine) - np.load(theirs)).max()
    print(f"largest difference of two vectors' numbers: {gap:.2g}")
    rounds = [{k: ask(p) for k, p in sides.items()} for _ in range(flags.rounds)]
    for name in sides:
        each = [len(texts) / one[name] for one in rounds]
        print(
            f"{name}: {statistics.median(each):.1f} texts/s "
            f"({min(each):.1f} to {max(each):.1f})"
        )
    ratios = [one["peer"] / one["ours"] for one in rounds]
    print(
        f"ours / peer: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    for process in sides.values():
        process.terminate()


if __name__ == "__main__":
    main()
