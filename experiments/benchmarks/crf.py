"""A linear-chain CRF over features on a CPU: training and decoding beside CRFsuite.

    python -m experiments.benchmarks.crf RUN --peer=PYTHON [--iterations=100]
        [--rounds=3]

RUN is the workdir of a `configs/crf.py` with an evaluation "test"; PYTHON has
python-crfsuite and numpy. Both sides get the same features of the same words, those
that the run's model has, one sequence for each sentence, the penalties of the run,
L-BFGS (with c1 OWL-QN) and as many iterations; they take turns. Training is the
minimisation from features in memory to weights, compilation apart; theirs is
`Trainer.train`. Decoding is that of the test set, from features to tags: ours one
program over all sentences, theirs `Tagger.tag` sentence by sentence. Losses include the
penalties.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import run as runs
from lm.config import resolve as configs
from lm.data import pipeline
from lm.models import crf
from lm.ops import chain, sparse

PEER = """
import json, sys, time
import numpy as np, pycrfsuite
folder, c1, c2, iterations = sys.argv[1], *map(float, sys.argv[2:4]), int(sys.argv[4])
def sequences(part):
    data = np.load(f"{folder}/{part}.npz")
    names = [[str(f) for f in row if f < data["none"]] for row in data["at"].tolist()]
    tags = [str(y) for y in data["labels"].tolist()]
    starts = [*np.flatnonzero(data["first"]).tolist(), len(tags)]
    return [(names[a:b], tags[a:b]) for a, b in zip(starts, starts[1:])]
trainer = pycrfsuite.Trainer("lbfgs", verbose=False)
for features, tags in sequences("train"):
    trainer.append(features, tags)
trainer.set_params({"c1": c1, "c2": c2, "max_iterations": iterations})
start = time.perf_counter()
trainer.train(f"{folder}/model")
training = time.perf_counter() - start
last = trainer.logparser.last_iteration
test = sequences("test")
tagger = pycrfsuite.Tagger()
tagger.open(f"{folder}/model")
start = time.perf_counter()
found = [tagger.tag(features) for features, _ in test]
decoding = time.perf_counter() - start
right = sum(a == b for (_, tags), own in zip(test, found) for a, b in zip(tags, own))
accuracy = right / sum(map(len, found))
print(json.dumps([training, decoding, last["num"], last["loss"], accuracy]))
"""


def words_of(model: Any, config: Any, stream: Any, shares: Any) -> dict[str, Any]:
    """Returns the features, tags and sentences of all rows, as a fit does."""
    rows, size = len(stream), config.batch_size
    batches = pipeline.batches(
        replace(stream, mixture=None, lanes=None, group=0),
        batch_size=size,
        first_step=0,
        last_step=math.ceil(rows / size),
        data=configs.build(pipeline.Data, config.data),
        shares=shares,
        rows=rows,
    )
    parts = [model.statistics({}, batch) for batch in batches]
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    run = runs.open_run(flags.run, note=lambda line: None)
    model, params = run.program.model, jax.device_get(run.params)
    corpus, seen = run.corpus, params["seen"]
    sets = {"train": corpus.stream, "test": corpus.evals["test"]}
    found = {
        part: words_of(model, run.config, stream, corpus.shares)
        for part, stream in sets.items()
    }
    none = len(seen["state"])
    at = {p: model.places(params, f["features"], np) for p, f in found.items()}
    packed = {part: crf.pack(at[part], none, found[part]) for part in found}
    packed = jax.device_put(packed)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), seen)
    static = False, flags.iterations, model.history, model.c1
    arguments = jnp.float32(model.c2), zeros, seen, packed["train"], None
    start = time.perf_counter()
    fit = crf.minimise.lower(*static, *arguments).compile()
    compilation = time.perf_counter() - start

    @jax.jit
    def decode(weights: Any, packed: Any) -> jax.Array:
        emissions = sparse.row_sums(weights["state"], packed["features"])
        scores = crf.scores(weights, emissions, False)
        return chain.best(scores, packed["segments"]).labels[:, 0]

    jax.block_until_ready(decode(zeros, packed["test"]))  # compiles

    def ours() -> list[float]:
        start = time.perf_counter()
        made = jax.block_until_ready(fit(*arguments))
        training = time.perf_counter() - start
        start = time.perf_counter()
        tags = jax.block_until_ready(decode(made.weights, packed["test"]))
        decoding = time.perf_counter() - start
        real = packed["test"]["segments"] > 0
        right = jnp.sum((tags == packed["test"]["labels"]) & real) / jnp.sum(real)
        return [training, decoding, int(made.steps), float(made.value), float(right)]

    with tempfile.TemporaryDirectory() as folder:
        for part, words in found.items():
            kept = {name: words[name] for name in ("labels", "first")}
            np.savez(f"{folder}/{part}.npz", at=at[part], none=none, **kept)
        penalties = [str(model.c1), str(model.c2), str(flags.iterations)]
        command = [flags.peer, "-c", PEER, folder, *penalties]

        def theirs() -> list[float]:
            done = subprocess.run(
                command, check=True, text=True, stdout=subprocess.PIPE
            )
            return json.loads(done.stdout.splitlines()[-1])

        sides: dict[str, list[list[float]]] = {"ours": [], "crfsuite": []}
        for _ in range(flags.rounds):
            sides["ours"].append(ours())
            sides["crfsuite"].append(theirs())
            print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    count = {part: int(words["first"].sum()) for part, words in found.items()}
    print(
        f"{count['train']:,} sentences, {none:,} features, "
        f"{seen['state'].shape[1]} tags, c1 {model.c1}, c2 {model.c2}; "
        f"compilation {compilation:.1f} s\n"
    )
    print("| | s | iterations | sentences/s | loss | decoded/s | accuracy |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in sides.items():
        training, decoding, steps, loss, right = map(statistics.median, zip(*rows))
        print(
            f"| {name} | {training:.1f} | {steps:.0f} "
            f"| {steps * count['train'] / training:,.0f} | {loss:,.2f} "
            f"| {count['test'] / decoding:,.0f} | {100 * right:.2f} |"
        )
    ratios = [b[0] / b[2] / (a[0] / a[2]) for a, b in zip(*sides.values())]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"\nan iteration, crfsuite / ours: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
