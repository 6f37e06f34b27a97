"""The reference is made from the docstrings, and a warning is an error."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(target, *modules, path=ROOT):
    command = [sys.executable, str(ROOT / "launch" / "docs.py"), str(target), *modules]
    return subprocess.run(command, cwd=path, capture_output=True, text=True)


def test_a_page_has_what_its_docstrings_say(tmp_path):
    found = make(tmp_path / "docs", "lm.errors")
    assert found.returncode == 0, found.stderr
    page = (tmp_path / "docs" / "lm" / "errors.html").read_text()
    assert "ConfigError" in page
    assert "what the user can do about it" in page


def test_a_signature_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "bad.py").write_text('def f(x: "NoSuchType") -> int:\n    """Says."""')
    found = make(tmp_path / "docs", str(tmp_path / "bad.py"))
    assert found.returncode == 1
    assert "NoSuchType" in found.stderr


@pytest.mark.slow
def test_every_room_and_file_has_a_page(tmp_path):
    found = make(tmp_path)
    assert found.returncode == 0, found.stderr
    for file in (ROOT / "lm").rglob("*.py"):
        name = file.relative_to(ROOT).with_suffix("")
        name = name.parent if name.stem == "__init__" else name
        assert (tmp_path / f"{name}.html").exists(), name
