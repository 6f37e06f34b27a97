"""Fine-tuning of a classifier beside transformers and PyTorch on CPU, in one run.

    python -m experiments.benchmarks.finetune --peer=PYTHON \
        --config=configs/glue.py:task=mrpc,preset=hf,dir=DIR \
        --config.init.source=hf:DIR [--batches=16] [--rounds=5] [--full]
        [--config.FIELD=VALUE]

Both sides train the model of `init.source` on the same rows, float32, dropout of 0.1,
AdamW, gradients clipped, all cores. Ours go in length buckets, as the run has them; the
peer's in an order of their own, each batch padded to its longest row, as its data
collator does. `--full`: each row of both is `seq_len` random tokens, so nothing is
padding. They take turns, a round being `--batches` updates of each after one such round
that compiles; the table has medians over the rounds. PYTHON has torch and transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.bert_step import ask
from experiments.benchmarks.updates import Updates
from lm.config import resolve as configs
from lm.hf.source import with_shape

PEER = """
import json, sys, time, torch, transformers
from transformers import AutoModelForSequenceClassification
folder, file, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
given = json.load(open(file))
model = AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=given["classes"], attn_implementation="sdpa")
model.train()
optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
rows = given["rows"]
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
def batch(numbers):
    width = max(len(rows[n]["ids"]) for n in numbers)
    pad = lambda values: values + [0] * (width - len(values))
    return dict(
        input_ids=torch.tensor([pad(rows[n]["ids"]) for n in numbers]),
        token_type_ids=torch.tensor([pad(rows[n]["types"]) for n in numbers]),
        attention_mask=torch.tensor([pad([1] * len(rows[n]["ids"])) for n in numbers]),
        labels=torch.tensor([rows[n]["label"] for n in numbers]))
batches = [batch(order[at : at + size]) for at in range(0, len(order), size)]
positions = sum(b["input_ids"].numel() for b in batches)
print(json.dumps([f"torch {torch.__version__}, transformers "
    f"{transformers.__version__}, {torch.get_num_threads()} threads", positions]),
    flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    for b in batches:
        loss = model(**b).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    print(time.perf_counter() - start, flush=True)
"""


class Ours(Updates):
    """A run whose updates are timed, with its rows for the other side."""

    def __init__(self, config, workdir: Path, count: int, full: bool):
        super().__init__(config, workdir, count)
        if full:
            self.batches = [filled(batch, config.seq_len) for batch in self.batches]
        self.rows = [row for batch in self.batches for row in unpadded(batch)]
        self.positions = sum(np.size(batch["inputs"]) for batch in self.batches)
        self.compile()


def filled(batch, width: int):
    """The batch with `width` random tokens in each row."""
    size = len(batch["labels"])
    tokens = np.random.default_rng(0).integers(1000, 20000, (size, width), np.int32)
    places = np.tile(np.arange(width, dtype=np.int32), (size, 1))
    ones, zeros = np.ones_like(tokens), np.zeros_like(tokens)
    arrays = {"positions": places, "segment_ids": ones, "token_types": zeros}
    return batch | {"inputs": tokens} | arrays


def unpadded(batch) -> list[dict]:
    """The rows of a batch as lists of tokens, for the other side."""
    made = []
    for ids, types, real, label in zip(
        batch["inputs"], batch["token_types"], batch["segment_ids"], batch["labels"]
    ):
        row = {"ids": ids[real > 0].tolist(), "types": types[real > 0].tolist()}
        made.append(row | {"label": int(label)})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true")
    flags, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        config = configs.load(flags.config, overrides, fill=with_shape(workdir))
        ours = Ours(config, workdir, flags.batches, flags.full)
        file = Path(folder) / "rows.json"
        given = {"rows": ours.rows, "classes": config.objective.get("classes", 1)}
        file.write_text(json.dumps(given))
        model = config.init.source.removeprefix("hf:")
        command = [flags.peer, "-c", PEER, model, str(file), str(config.batch_size)]
        peer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        name, theirs = ask(peer)
        ours.seconds(), ask(peer, "go\n")
        rounds = [(ours.seconds(), ask(peer, "go\n")) for _ in range(flags.rounds)]
        peer.terminate()
    tokens = sum(len(row["ids"]) for row in ours.rows)
    print(f"{name}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{len(ours.rows)} rows of {tokens / len(ours.rows):.1f} tokens\n")
    print("| side | padding | s | tokens/s |")
    print("|---|---|---|---|")
    sides = {f"ours, jax {jax.__version__}": ours.positions, "peer": theirs}
    for (side, positions), times in zip(sides.items(), zip(*rounds)):
        seconds = statistics.median(times)
        padding = f"{1 - tokens / positions:.1%}"
        print(f"| {side} | {padding} | {seconds:.2f} | {tokens / seconds:,.0f} |")
    ratios = [other / own for own, other in rounds]
    print(f"\nours / peer: {statistics.median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
