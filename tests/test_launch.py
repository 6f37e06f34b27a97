"""The scripts of launch/ that decide something."""

import os
import subprocess
from pathlib import Path

import pytest

AGAIN = Path(__file__).resolve().parents[1] / "launch" / "again.sh"
# Ends with the next code of a list at each call, and counts its calls.
COMMAND = "n=$(wc -l < calls); echo >> calls; set -- {}; shift $n; exit $1"


@pytest.mark.parametrize(
    ("codes", "calls", "code"),
    [
        ("0", 1, 0),
        ("75 8 137 0", 4, 0),
        ("75 4 0", 2, 4),
        ("1 0", 1, 1),
        ("130 0", 1, 130),
        ("75 75 75 75 75", 4, 75),  # as often as it may
    ],
)
def test_only_what_may_be_continued_is_run_again(tmp_path, codes, calls, code):
    (tmp_path / "calls").touch()
    done = subprocess.run(
        ["bash", AGAIN, "bash", "-c", COMMAND.format(codes)],
        cwd=tmp_path,
        env=os.environ | {"LM_RETRIES": "3", "LM_RETRY_SECONDS": "0"},
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == calls
