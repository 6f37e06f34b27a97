"""Makes hostile inputs from a seeded generator, so that a seed gives the same again."""

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import resolve as configs
from lm.errors import ConfigError
from tests import tiny

NUMBERS = (0, -1, 1, 2, 3, 7, 17, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300)
NUMBERS += (1e39, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "a", "x" * 5000, "../../x", "/dev/zero", "/", "~", "a.b", "os.path")
TEXTS += ("\x1b[31m", "今天", "🙂", "\udcff", "a\nb", "[", "(", "{}", "None", "1e3")
TEXTS += ("5%", "-5%", "3 epochs", "1e400 tokens", "latest", "hf:/nowhere", "hf:a/b")
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, [], {}, [[]], [{}], [1, "a"])
VALUES += ({"name": "x"}, {"a": {"b": []}}, [None])
LINES = (b"", b"\xff\xfe", b"{", b"[]", b'{"text": 3}', b'{"text": null}', b"\0" * 9)
LINES += (b'{"text": "a red dog"}', b"[" * 5000, b'{"text": "\\ud800"}', b'"', b"a,b,c")
LINES += (
    "今天天气".encode("gbk"),
    "café".encode("utf-16"),
    b"x" * 10000,
    b"\r\r\n",
    b"1e999",
)


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted path of each part of a tree, sections included."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        items = enumerate(value)
    for key, inner in items:
        here = f"{path}.{key}".strip(".")
        yield here
        yield from paths(inner, here)


def overrides(draw: random.Random) -> list[str]:
    """Makes one to three flags that set fields of the tiny run to odd values."""
    known = [p for p in paths(configs.plain(tiny.config(), "")) if "items." not in p]
    flags = []
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(known)
        if draw.random() < 0.1:
            path = draw.choice(
                ("model.x", "x", "evals.new.evaluator", "evals.a/b.x", ".")
            )
        if draw.random() < 0.15:
            path += draw.choice((".x", ".0", ".99", "..", ".name", ".x.y"))
        flags.append(f"--config.{path}={draw.choice(VALUES)}")
    return flags


def accepted_overrides(draw: random.Random, file: str) -> list[str]:
    """Draws overrides until the first stage of the check accepts them."""
    while True:
        flags = overrides(draw)
        with contextlib.suppress(ConfigError):
            configs.load(file, flags)
            return flags


def damage(draw: random.Random, data: bytes) -> bytes:
    """Damages bytes: cut, flipped, doubled, or JSON with odd values."""
    how = draw.choice(("cut", "flip", "double", "value", "value", "drop", "other"))
    if how == "value" or how == "drop":
        try:
            return _odd_json(draw, json.loads(data), how).encode()
        except ValueError:
            how = "flip"
    at = draw.randrange(len(data) + 1)
    if how == "cut":
        return data[:at]
    if how == "flip" and data:
        at %= len(data)
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    return data + data if how == "double" else draw.choice(LINES)


def _odd_json(draw: random.Random, tree: Any, how: str) -> str:
    known = list(paths(tree))
    if known:
        *parents, last = draw.choice(known).split(".")
        inner = tree
        for key in parents:
            inner = inner[int(key) if isinstance(inner, list) else key]
        key = int(last) if isinstance(inner, list) else last
        if how == "drop":
            del inner[key]
        else:
            inner[key] = draw.choice(VALUES)
    else:
        tree = draw.choice(VALUES)
    return json.dumps(tree)


def data_file(draw: random.Random, folder: Path) -> list[str]:
    """Writes a file of odd lines, and makes the flags that train on it."""
    name = draw.choice(("text", "jsonl", "csv", "tsv"))
    suffix = {"text": "txt"}.get(name, name)
    file = folder / f"data.{suffix}"
    lines = [draw.choice(LINES) for _ in range(draw.randint(0, 6))]
    good = {"text": b"a red dog runs\n\n", "jsonl": b'{"text": "a red dog runs"}\n'}
    whole = good.get(name, b"text\tlabel\na red dog runs\t1\n") * draw.choice((0, 1, 9))
    file.write_bytes(whole + draw.choice((b"\n", b"\n\n", b"")).join(lines))
    source = {"name": name, "files": str(file)}
    if name == "csv" and draw.random() < 0.5:
        source["delimiter"] = draw.choice((",", ";", "\t", "|", "ab"))
    return [f"--config.data.sources={[source]}"]


def workdir(draw: random.Random, run: Path, folder: Path) -> Path:
    """Copies a run and damages, removes or replaces one of its files."""
    made = folder / "run"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(run, made)
    file = draw.choice(sorted(p for p in made.rglob("*") if p.is_file()))
    small = ("config.json", "run.json", "metrics.jsonl", "best", "lock", "host.json")
    if draw.random() < 0.7:
        file = draw.choice([p for p in made.rglob("*") if p.name in small])
    what = draw.random()
    if what < 0.15:
        file.unlink()
    elif what < 0.25:
        file.unlink()
        file.mkdir()
    elif what < 0.3:
        file.unlink()
        file.symlink_to(draw.choice(("/dev/zero", "nowhere", file)))
    else:
        file.write_bytes(damage(draw, file.read_bytes()))
    return made


def hugging_face(draw: random.Random, case: Path, folder: Path) -> Path:
    """Copies a directory of Hugging Face and damages one of its files."""
    made = folder / "hf"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(case, made)
    file = draw.choice(sorted(p for p in made.rglob("*") if p.is_file()))
    if draw.random() < 0.6:
        file = made / "config.json"
    file.write_bytes(damage(draw, file.read_bytes()))
    return made


def prompts(draw: random.Random, folder: Path) -> list[str]:
    """Makes flags and prompts for lm.generate, on the command line or in a file."""
    flags = [
        f"--{name}={draw.choice(VALUES)}"
        for name in ("max-tokens", "temperature", "top-k", "beams", "n-best", "stop")
        if draw.random() < 0.2
    ]
    if draw.random() < 0.5:
        text = draw.choice([t for t in TEXTS if "\0" not in t])
        return [*flags, "--max-tokens=3", "--", text]
    lines = [draw.choice((*LINES, b'{"prompt": "a red"}')) for _ in range(3)]
    (folder / "prompts.jsonl").write_bytes(b"\n".join(lines))
    return [*flags, "--max-tokens=3", f"--input={folder / 'prompts.jsonl'}"]
