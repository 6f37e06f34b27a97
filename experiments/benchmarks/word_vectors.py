"""Words a second of skip-gram with negative samples on a CPU, beside gensim.

    python experiments/benchmarks/word_vectors.py --dir=WIKITEXT2 --peer=PYTHON \
        [--rounds=5] [--epochs=1] [--workers=2]

PYTHON has gensim. Both sides train `configs/word2vec.py` on train.txt(.gz) of DIR:
lower-cased lines, 100 dimensions, a window of five, five negatives, words seen five
times, sub-sampling at 1e-3. Ours is the whole command: its words a second are those of
the steps in timing.jsonl, waiting for data included, compilation, indexing and
evaluation not. Theirs are the words over the seconds of `Word2Vec.train` with so many
workers, on lists of words in memory; reading, the vocabulary and the start are not
counted. The two take turns; words are counted before sub-sampling, without those left
out as rare.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER = """
import gzip, json, sys, time
from pathlib import Path
from gensim.models import Word2Vec
import gensim
folder, epochs, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
packed = folder / "train.txt.gz"
opened = gzip.open(packed, "rt", encoding="utf-8") if packed.exists() else open(
    folder / "train.txt", encoding="utf-8")
texts = [words for line in opened if (words := line.lower().split())]
model = Word2Vec(vector_size=100, window=5, sg=1, negative=5, min_count=5, sample=1e-3,
                 alpha=0.025, min_alpha=1e-4, workers=workers, epochs=epochs)
model.build_vocab(texts)
words = sum(model.wv.get_vecattr(w, "count") for w in model.wv.index_to_key) * epochs
start = time.perf_counter()
model.train(texts, total_examples=len(texts), epochs=epochs)
seconds = time.perf_counter() - start
print(json.dumps([int(words), seconds, gensim.__version__]))
"""


def ours(folder: Path, epochs: int) -> float:
    """Words a second of the steps of a run."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        command = [sys.executable, "-m", "lm.main", f"--workdir={workdir}"]
        command.append(f"--config=configs/word2vec.py:dir={folder}")
        command += [f"--config.steps={epochs} epochs", "--config.evals={}"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
        lines = (workdir / "timing.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
    seconds = rows[-1]["time"] - rows[0]["time"] + rows[0]["step_seconds"]
    return sum(row["tokens"] for row in rows) / seconds


def theirs(folder: Path, epochs: int, workers: int, python: str) -> tuple[float, str]:
    """(words a second, version)."""
    command = [python, "-c", PEER, str(folder), str(epochs), str(workers)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    words, seconds, version = json.loads(done.stdout.splitlines()[-1])
    return words / seconds, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    folder, found = flags.dir.absolute(), []
    for number in range(flags.rounds):
        own = ours(folder, flags.epochs)
        peer, version = theirs(folder, flags.epochs, flags.workers, flags.peer)
        found.append((own, peer))
        load = os.getloadavg()[0]
        print(
            f"round {number + 1}: ours {own:,.0f}, gensim {version} {peer:,.0f} "
            f"words/s, {own / peer:.2f}; load {load:.1f}",
            flush=True,
        )
    for name, values in zip(("ours", "gensim"), zip(*found)):
        middle = statistics.median(values)
        print(f"{name}: {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f})")
    ratio = statistics.median(own / peer for own, peer in found)
    print(f"ours / gensim: {ratio:.2f}, the median of {flags.rounds} rounds")


if __name__ == "__main__":
    main()
