"""Converts Schema-Guided Dialogue to dialogues and preferences in JSON Lines.

python -m experiments.dialogue.convert FROM TO

FROM holds files of dialogues as the set has them, JSON or gzip, whose names begin with
train_ or dev_; TO gets train.jsonl and dev.jsonl. The user's turns stay the user's, the
system's become the assistant's; what is annotated beside the texts is left out.
TO/pairs gets files of the same names with preferences: for every answer the turns
before it, the answer itself ("chosen"), and one that the same file has at another
place ("rejected"), drawn with a fixed seed.
"""

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROLES = {"USER": "user", "SYSTEM": "assistant"}


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the dialogues of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Yields each dialogue as messages."""
    for path in paths:
        for dialogue in read(path):
            messages = [
                {"role": ROLES[turn["speaker"]], "content": turn["utterance"]}
                for turn in dialogue["turns"]
            ]
            yield {"id": dialogue["dialogue_id"], "messages": messages}


def pairs(dialogues: list[dict[str, Any]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yields a preference for every answer of the dialogues."""
    draw = random.Random(seed)
    said = sorted({m["content"] for d in dialogues for m in d["messages"][1::2]})
    for dialogue in dialogues:
        messages = dialogue["messages"]
        for n in range(1, len(messages), 2):
            chosen = rejected = messages[n]["content"]
            while rejected == chosen:
                rejected = draw.choice(said)
            before = {"id": f"{dialogue['id']}:{n}", "messages": messages[:n]}
            yield before | {"chosen": chosen, "rejected": rejected}


def write(path: Path, found: list[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} lines")


def main(source: str, target: str) -> None:
    place, out = Path(source), Path(target)
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        paths = sorted(place.glob(f"{name}_dialogues_*.json*"))
        if not paths:
            sys.exit(f"{place}: no {name}_dialogues_*.json or .json.gz")
        dialogues = [*rows(paths)]
        write(out / f"{name}.jsonl", dialogues)
        write(out / "pairs" / f"{name}.jsonl", [*pairs(dialogues)])


if __name__ == "__main__":
    main(*sys.argv[1:])
