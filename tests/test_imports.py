"""Who may import whom, read from the source; and what must never be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "lm").rglob("*.py"))

# room: the rooms of lm that it may import from, or single files of them, as in
# "host.storage"; `errors` and the own room go unsaid.
ALLOWED = {
    "errors": "",
    # leaves
    "ops": "",
    "tokenizers": "",
    "metrics": "",
    "trees": "",
    "host": "",
    # parts
    "config": "host.files models.base ops.attention.limits",
    "models": "ops",
    "data": "config host.inputs host.lock host.storage tokenizers",
    "objectives": "data hf.chat models ops tokenizers",
    "decoding": "models.base ops tokenizers trees",
    "evaluators": "config data decoding formats host metrics objectives.base retrieval "
    "tokenizers",
    "retrieval": "host",
    "training": "config host ops trees updates workdir",
    "updates": "ops trees",
    "adapters": "models ops",
    "adapted": "config host.files models.base training transfer trees vectors workdir",
    "workdir": "config host trees",
    "hf": "config host.storage tokenizers",
    "formats": "host ops",
    "transfer": "hf trees workdir",
    "vectors": "config formats trees",
    "checks": "config data host.storage models.base run tokenizers training trees "
    "workdir",
    "run": "adapted config data decoding evaluators hf models tokenizers training "
    "transfer trees vectors workdir",
    "distilled": "adapted config data hf run training transfer workdir",
    "evaluations": "config data decoding embedder evaluators run training",
    # the loop and the commands
    "train": "adapted config data distilled evaluations host run training transfer "
    "vectors workdir",
    "fit": "config data evaluations host run training transfer workdir",
    "convert": "adapted config data formats hf host peft run transfer trees workdir",
    "peft": "adapted config hf run trees",
    "evaluate": "config evaluations hf host run transfer workdir",
    "generate": "config decoding hf host objectives.base run tokenizers transfer "
    "workdir",
    "ask": "config data objectives.base run training",
    "records": "config data host workdir",
    "embedder": "ask config data hf models.base objectives.contrastive run tokenizers "
    "training transfer workdir",
    "embed": "config data embedder hf host objectives.contrastive records workdir",
    "compare": "config host metrics workdir",
    "predict": "ask config host records run workdir",
    "score": "config data evaluators host run workdir",
    "rescore": "config data formats host metrics run",
    "search": "config embedder formats host metrics retrieval run",
    "results": "config host metrics workdir",
    "sweep": "config hf host results run workdir",
    "doctor": "checks config data hf host run",
    "verify": "checks config data hf host run trees vectors workdir",
    "main": "config hf host run",
    "__init__": "ask config data decoding embedder evaluations evaluators hf host main "
    "records run "
    "transfer workdir",
    "__main__": "config host",
}
NEVER = {"torch", "transformers", "tensorflow", "configs", "experiments", "tests"}
LAZY = {"grain", "tensorflow_datasets", "orbax", "tensorboardX", "tokenizers"}
LAZY |= {"sentencepiece", "sklearn", "rich", "huggingface_hub"}
LIGHT = {"jax", "flax", "optax", "jaxtyping", "numpy", "lm"}  # and the standard library


def within(module: str, places: set[str]) -> bool:
    """Whether `lm.a.b` lies in one of the places "a", "a.b"."""
    path = module.split(".")[1:]
    return any(".".join(path[:n]) in places for n in range(1, len(path) + 1))


def imports(path: Path, top_level: bool = False):
    """The modules that a file imports, `from lm import x` as lm.x."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            deeper = node.module.partition(".")[0] == "lm"
            yield from (
                f"{node.module}.{alias.name}" if deeper else node.module
                for alias in node.names
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    own = path.relative_to(ROOT / "lm").parts[0].removesuffix(".py")
    assert own in ALLOWED, f"say in ALLOWED what {own} may import"
    allowed = {own, "errors", *ALLOWED[own].split()}
    for module in imports(path):
        top = module.partition(".")[0]
        assert top not in NEVER, f"{path} imports {module}"
        if top == "lm":
            assert within(module, allowed), f"{path} imports {module}"
    for module in imports(path, top_level=True):
        assert module.partition(".")[0] not in LAZY, f"{path} imports {module} early"


@pytest.mark.parametrize(
    "room", ["ops", "models", "objectives", "training/step.py", "data"]
)
def test_the_mathematics_needs_few_libraries(room):
    for path in FILES:
        if not path.is_relative_to(ROOT / "lm" / room):
            continue
        for module in imports(path, top_level=True):
            top = module.partition(".")[0]
            assert top in LIGHT or top in sys.stdlib_module_names, f"{path}: {module}"


def test_every_file_says_what_it_is():
    for path in FILES:
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        assert lines, f"{path}: no docstring"
        if path.parent == ROOT / "lm" and path.stem != "__init__":
            assert lines[0].startswith(("Command: ", "Part: ")), path


def test_no_file_is_too_long():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, path


def test_checking_a_config_imports_nothing_heavy():
    code = (
        "import sys; from lm import main; from lm.config import resolve; "
        "resolve.load('configs/bert_tiny.py', []); "
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


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
