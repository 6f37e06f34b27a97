"""Task files: an evaluator and its fields as JSON, beside the items of the task.

`NAME.json` holds the fields of an evaluator that asks questions, `choices` (which goes
unsaid) or `answers`, and its `file` stands in the same folder, NAME.jsonl by default:

    {"evaluator": "answers", "template": "Q: {question}\\nA:", "answers": "reply"}
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from lm.config import classes, schema
from lm.errors import ConfigError
from lm.host import files

MOST = 2**20  # bytes of a task file
FILES = ("file", "shots_file")


def read_tasks(folder: str) -> dict[str, dict[str, Any]]:
    """Reads all task files of a folder; returns a section of `evals` for each, by name.

    Raises:
      ConfigError: there is none, or one is wrong: names its line.
    """
    found = {path.stem: read_task(path) for path in sorted(Path(folder).glob("*.json"))}
    if not found:
        what = "no task file" if Path(folder).is_dir() else "no such folder"
        raise ConfigError(folder, what, "a folder with NAME.json beside NAME.jsonl")
    return found


def read_task(path: Path) -> dict[str, Any]:
    """Reads a task file; returns the section of `evals`, without its data.

    Raises:
      ConfigError: it is no JSON object of the fields of an evaluator.
    """
    what = "a JSON object with the fields of an evaluator"
    data = files.read_bytes(path, limit=MOST, error=ConfigError)
    text = files.decode(data, str(path), ConfigError)
    given = {"file": f"{path.stem}.jsonl"}
    given |= files.parse_json(text, path, {}, ConfigError, what)
    name = given.setdefault("evaluator", "choices")
    if not re.fullmatch(r"\w+", path.stem):
        expected = "a name of letters, digits and _, which the evaluation has"
        raise ConfigError(str(path), repr(path.stem), expected)
    place, fields = f"{path}:{_line(text, 'evaluator')}", {}
    if re.fullmatch(r"\w+", str(name)):  # no code of the user's: the file is data
        with suppress(ConfigError):
            fields = classes.read_options("evaluator", {"evaluator": name}, place)
    if "shots" not in fields:
        raise ConfigError(place, f"evaluator {name!r}", "'choices' or 'answers'")
    for key, value in given.items():
        where = f"{path}:{_line(text, key)}"
        if key == "evaluator":
            continue
        if key not in fields:
            guess = schema.near(key, fields)
            expected = f"a field of evaluator {name}: {', '.join(sorted(fields))}"
            fix = f"did you mean {guess!r}?" if guess else None
            raise ConfigError(where, f"an unknown field {key!r}", expected, fix)
        schema.check(fields[key], value, where)
    for key in FILES:
        if given.get(key) is not None:
            given[key] = str(path.parent / given[key])
    return given


def _line(text: str, key: str) -> int:
    """Returns the number of the line on which a key of a JSON object stands, or 1."""
    found = re.search(rf'"{re.escape(key)}"\s*:', text)
    return text.count("\n", 0, found.start()) + 1 if found else 1
