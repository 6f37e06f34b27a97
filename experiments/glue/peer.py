"""The fine-tuning of configs/glue.py in transformers and PyTorch, to compare with.

    PYTHON experiments/glue/peer.py --task=mrpc --model=DIR --train=FILE --dev=FILE \
        --seeds=0,1,2 [--epochs=3] [--lr=5e-5] [--output=FILE.jsonl]

PYTHON has torch, transformers, scikit-learn and scipy; nothing of lm is imported. Equal
to ours: the files, the tokenizer, the lengths at which rows are cut, batches of 32,
AdamW with decay 0.01 of matrices alone, a tenth of warm-up and a linear fall to 0,
gradients clipped at 1, dropout of the checkpoint, the checkpoint's pooler. Another: the
order of the rows, the masks of dropout, the new head's numbers. A batch is padded to
its longest row. Each seed gives a line of JSON: the scores after the last epoch.
"""

import argparse
import csv
import json
import time

import torch
from scipy import stats
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# task: (columns of the texts, the label's, whether the files have a header, length)
TASKS = {
    "cola": ((3,), 1, False, 64),
    "sst2": (("sentence",), "label", True, 64),
    "mrpc": (("#1 String", "#2 String"), "Quality", True, 128),
    "stsb": (("sentence1", "sentence2"), "score", True, 128),
}


def read(task: str, file: str) -> list[tuple[list[str], float]]:
    columns, label, header, _ = TASKS[task]
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = rows.pop(0) if header else list(range(len(rows[0])))
    places = [names.index(column) for column in columns]
    return [
        ([row[at] for at in places], float(row[names.index(label)])) for row in rows
    ]


def batches(tokenizer, items, order, length):
    for at in range(0, len(order), 32):
        chosen = [items[n] for n in order[at : at + 32]]
        texts = [list(column) for column in zip(*(texts for texts, _ in chosen))]
        rows = tokenizer(
            *texts,
            truncation=True,
            max_length=length,
            padding=True,
            return_tensors="pt",
        )
        yield rows, torch.tensor([label for _, label in chosen])


def scores(task: str, found: torch.Tensor, labels: list[float]) -> dict[str, float]:
    if task == "stsb":
        values = found[:, 0].tolist()
        return {
            "spearman": float(stats.spearmanr(values, labels).statistic),
            "pearson": float(stats.pearsonr(values, labels).statistic),
        }
    picks = found.argmax(-1).tolist()
    return {
        "matthews": float(metrics.matthews_corrcoef(labels, picks)),
        "accuracy": float(metrics.accuracy_score(labels, picks)),
        "f1": float(metrics.f1_score(labels, picks)),
    }


def train(flags, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    length = TASKS[flags.task][3]
    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        flags.model, num_labels=1 if flags.task == "stsb" else 2
    )
    items, dev = read(flags.task, flags.train), read(flags.task, flags.dev)
    flat = [p for p in model.parameters() if p.ndim < 2]
    deep = [p for p in model.parameters() if p.ndim >= 2]
    optimiser = torch.optim.AdamW(
        [{"params": deep, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}],
        lr=flags.lr,
        eps=1e-8,
    )
    steps = flags.epochs * -(-len(items) // 32)
    warmup = steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            (step + 1) / max(warmup, 1), (steps - step) / max(steps - warmup, 1)
        ),
    )
    scale = 5.0 if flags.task == "stsb" else 1.0
    began = time.perf_counter()
    model.train()
    for _ in range(flags.epochs):
        order = torch.randperm(len(items)).tolist()
        for rows, labels in batches(tokenizer, items, order, length):
            logits = model(**rows).logits
            if flags.task == "stsb":
                loss = ((logits[:, 0] - labels / scale) ** 2).mean()
            else:
                loss = torch.nn.functional.cross_entropy(logits, labels.long())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        found = torch.cat(
            [
                model(**rows).logits
                for rows, _ in batches(tokenizer, dev, range(len(dev)), length)
            ]
        )
    made = scores(flags.task, found, [label for _, label in dev])
    return made | {"seed": seed, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--output")
    flags = parser.parse_args()
    for seed in flags.seeds.split(","):
        line = json.dumps({"task": flags.task} | train(flags, int(seed)))
        print(line, flush=True)
        if flags.output:
            with open(flags.output, "a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
