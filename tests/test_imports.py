"""Who may import whom, read from the source; and what must never be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "lm").rglob("*.py"))

# room: the rooms of lm that it may import from; `errors` and the own room go unsaid.
ALLOWED = {
    "errors": "",
    # leaves
    "ops": "",
    "tokenizers": "",
    "metrics": "",
    "trees": "",
    "durations": "",
    "schema": "durations",
    "rules": "durations ops",
    "config_file": "schema",
    "config": "schema rules durations config_file",
    "storage": "",
    "flags": "",
    "timing": "",
    # parts
    "models": "ops",
    "data": "config lock storage tokenizers",
    "objectives": "ops data models",
    "cached": "",
    "beams": "cached",
    "decode": "beams cached ops",
    "speaker": "decode",
    "chat": "",
    "evaluators": "config data decode metrics storage",
    "optim": "config trees",
    "sharding": "trees",
    "step": "optim",
    "guard": "",
    "writer": "config storage timing",
    "checkpoint": "config storage trees watch",
    "hf": "config storage",
    "transfer": "checkpoint hf trees",
    "runtime": "",
    "lock": "storage",
    "watch": "storage",
    "diagnose": "trees",
    "parts": "config data decode evaluators hf models optim sharding step timing trees",
    # the loop and the commands
    "train": "checkpoint config data diagnose guard parts runtime sharding storage "
    "timing transfer watch writer",
    "convert": "checkpoint config data flags hf runtime storage trees writer",
    "evaluate": "checkpoint config flags parts runtime transfer",
    "generate": "chat checkpoint config decode flags hf parts runtime schema speaker "
    "storage transfer",
    "invariances": "config parts sharding trees",
    "verify": "checkpoint config data flags hf invariances parts runtime storage trees",
    "main": "config flags hf lock runtime storage train",
}
NEVER = {"torch", "transformers", "tensorflow", "configs", "experiments", "tests"}
LAZY = {"grain", "tensorflow_datasets", "orbax", "tensorboardX", "tokenizers"}
LAZY |= {"sentencepiece", "sklearn", "rich", "huggingface_hub"}
LIGHT = {"jax", "flax", "optax", "jaxtyping", "numpy", "lm"}  # and the standard library


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, top_level: bool = False):
    """The modules that a file imports, `from lm import x` as lm.x."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            deeper = node.module == "lm"
            yield from (
                f"lm.{alias.name}" if deeper else node.module for alias in node.names
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    own = path.relative_to(ROOT / "lm").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in ALLOWED, f"say in ALLOWED what {own} may import"
    allowed = {own, "errors", *ALLOWED[own].split()}
    for module in imports(path):
        top = module.partition(".")[0]
        assert top not in NEVER, f"{path} imports {module}"
        if top == "lm":
            assert room(module) in allowed, f"{path} imports {module}"
    for module in imports(path, top_level=True):
        assert module.partition(".")[0] not in LAZY, f"{path} imports {module} early"


@pytest.mark.parametrize("room", ["ops", "models", "objectives", "step", "data"])
def test_the_mathematics_needs_few_libraries(room):
    for path in FILES:
        if path.relative_to(ROOT / "lm").parts[0].removesuffix(".py") != room:
            continue
        for module in imports(path, top_level=True):
            top = module.partition(".")[0]
            assert top in LIGHT or top in sys.stdlib_module_names, f"{path}: {module}"


def test_every_file_says_what_it_is():
    for path in FILES:
        if path.parent == ROOT / "lm" and path.stem != "__init__":
            first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            assert first.startswith(("Command: ", "Part: ")), path


def test_no_file_is_too_long():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, path


def test_checking_a_config_imports_nothing_heavy():
    code = (
        "import sys; from lm import config, main; "
        "config.load('configs/bert_tiny.py', []); "
        "print([m for m in ('jax', 'flax', 'grain', 'orbax') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_training_imports_neither_tensorflow_nor_torch():
    code = (
        "import sys; import lm.train, lm.evaluate, grain, tensorflow_datasets; "
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]", found.stderr
