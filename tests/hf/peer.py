"""Runs scripts in a Python that has `transformers` and PyTorch.

It is $LM_TRANSFORMERS_PYTHON, or the Python of the tests where that has them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
OWN = importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
PYTHON = os.environ.get("LM_TRANSFORMERS_PYTHON") or (sys.executable if OWN else None)

needed = pytest.mark.skipif(
    PYTHON is None,
    reason="transformers is not installed: LM_TRANSFORMERS_PYTHON names a Python of it",
)


def ask(script: str, *arguments: Any) -> Any:
    """Runs a script of tests/goldens; returns the JSON that it prints last."""
    command = [PYTHON, str(GOLDENS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
