"""Each row of the table of faults has its tests, and each durable write its points."""

import ast
import re
from pathlib import Path

from lm.host import storage

HERE = Path(__file__).parent
ROWS = {"C": 10, "K": 11, "D": 11, "N": 5, "G": 4, "E": 8, "S": 9}
IDS = [f"{letter}{n}" for letter, last in ROWS.items() for n in range(1, last + 1)]


def covered():
    """Collects the ids in the names of tests."""
    found = set()
    for file in HERE.glob("test_*.py"):
        for name in re.findall(
            r"^def test_((?:[CKDNGES]\d+_)+)", file.read_text(), re.M
        ):
            found |= set(name.strip("_").split("_"))
    return found


def table():
    """Reads the rows of README.md: id -> (what is tested, trials, failures)."""
    cells = re.findall(
        r"^\| ([A-Z]\d+) \| (.*?) \| (.*?) \| (.*?) \|$",
        (HERE / "README.md").read_text(),
        re.M,
    )
    return {id: rest for id, *rest in cells}


def test_each_row_has_a_test_or_a_reason():
    assert len(IDS) == 58
    rows = table()
    assert list(rows) == IDS
    for id in IDS:
        reason = rows[id][0].startswith("Not here: ")
        assert (id in covered()) != reason, id
    assert covered() <= set(IDS)


def test_each_test_and_file_that_the_table_names_is_there():
    text = "\n".join(rest[0] for rest in table().values())
    for path in re.findall(r"tests/[\w/]+(?:\.py)?", text):
        assert (HERE.parents[1] / path).exists(), path
    source = "\n".join(file.read_text() for file in HERE.glob("test_*.py"))
    names = re.findall(r"`([A-Z]\d+_\w+)(\.\.\.)?`", text)
    assert len(names) > 60
    for name, more in names:
        assert f"\ndef test_{name}{'' if more else '('}" in source, name


DURABLE = {"fsync", "rename", "rmtree", "sync_path", "sync_file"}
# They serve the others, which have the points around them.
HELPERS = {"sync_path", "sync_file", "rename", "_open", "__init__"}


def test_each_function_that_makes_bytes_durable_has_crash_points():
    seen = set()
    tree = ast.parse(Path(storage.__file__).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name in HELPERS:
            continue
        names = {
            part
            for part in re.findall(r"\w+", ast.unparse(node))
            if part in DURABLE | {"crash_point"}
        }
        if names & DURABLE:
            seen.add(node.name)
            assert "crash_point" in names, f"storage.{node.name} has no crash point"
    assert {"write_bytes", "sync", "commit", "remove_tree"} <= seen
