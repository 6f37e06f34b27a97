"""Converts Schema-Guided Dialogue to dialogues in JSON Lines.

python -m experiments.dialogue.convert FROM TO

FROM holds files of dialogues as the set has them, JSON or gzip, whose names begin with
train_ or dev_; TO gets train.jsonl and dev.jsonl. The user's turns stay the user's, the
system's become the assistant's; what is annotated beside the texts is left out. Equal
dialogues of different services stay apart, by the field `id`.
"""

import gzip
import json
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


def main(source: str, target: str) -> None:
    place, out = Path(source), Path(target)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        paths = sorted(place.glob(f"{name}_dialogues_*.json*"))
        if not paths:
            sys.exit(f"{place}: no {name}_dialogues_*.json or .json.gz")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(paths)]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{out / name}.jsonl: {len(lines)} dialogues")


if __name__ == "__main__":
    main(*sys.argv[1:])
