"""experiments/ladder/run.py: trains, goes on, compares; says what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def ladder(folder, *options):
    command = [sys.executable, "experiments/ladder/run.py", f"--dir={folder}"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, text=True, capture_output=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_kinds_are_trained_once_and_compared(tmp_path):
    code, said, error = ladder(tmp_path, "--quick", "--only=ngram3,cnn")
    assert code == 0, said + error
    results = json.loads((tmp_path / "results.json").read_text())
    found = {each["kind"]: each for each in results}
    assert set(found) == {"ngram3", "cnn"}
    assert found["ngram3"]["loss"] < found["cnn"]["loss"]  # after so few steps
    assert found["ngram3"]["flops"] is None
    assert len(found["cnn"]["curve"]) == 2
    assert found["cnn"]["flops"] > 0 and found["cnn"]["parameters"] > 1000
    for each in found.values():
        assert each["cpu_seconds"] > 0 and each["peak_bytes"] > 2**20
    table = (tmp_path / "table.md").read_text()
    assert "| gated CNN |" in table and "| 3-gram, Kneser-Ney |" in table
    changed = [(tmp_path / name / "metrics.jsonl").stat().st_mtime_ns for name in found]
    code, said, _ = ladder(tmp_path, "--quick", "--only=ngram3,cnn")
    assert code == 0 and said.count("done before") == 2
    again = [(tmp_path / name / "metrics.jsonl").stat().st_mtime_ns for name in found]
    assert again == changed
    # Other settings do not go into the same folder.
    code, said, _ = ladder(tmp_path, "--only=ngram3")
    assert code == 1 and "choose another --dir" in said


def test_what_failed_is_said_and_the_rest_is_made(tmp_path):
    text = tmp_path / "empty.txt"
    text.write_text("")
    code, said, _ = ladder(tmp_path / "out", "--only=ngram3", f"--text={text}")
    assert code == 1
    assert "failed: exit code 3: error[data]" in said and "ngram3.log" in said
    code, _, error = ladder(tmp_path / "out", "--only=ngram7")
    assert code == 2 and "'ngram7', expected some of ngram3" in error
