"""lm.verify, the command: a sound config, and one whose resume is not the same run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lm import verify
from lm.checks import resume
from lm.config.resolve import load
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "tests/faults/config.py"
# Imported by Python at its start: a run that continues reads its last batch again.
DEFECT = """
import importlib.util, sys

class Late:
    def find_spec(self, name, path, target=None):
        if name != "lm.data.pipeline":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def loaded(module):
            load(module)
            right = module.batches

            def batches(stream, *, first_step, **rest):
                begin = max(first_step - 1, 0)
                last = {"last_step": rest.pop("last_step")}
                return right(stream, first_step=begin, **last, **rest)

            module.batches = batches

        spec.loader.exec_module = loaded
        return spec

sys.meta_path.insert(0, Late())
"""


def command(*flags, config=CONFIG, **environ):
    return subprocess.run(
        [sys.executable, "-m", "lm.verify", f"--config={config}", *flags],
        cwd=ROOT,
        env=os.environ | environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_the_command_of_the_readme_says_what_stands_there(tmp_path):
    readme = (ROOT / "README.md").read_text()
    wanted = re.search(
        r"python -m (lm\.verify \S+)\n```\n\n```text\n(.*?)```", readme, re.S
    )
    config = wanted[1].partition("--config=")[2]
    done = command(f"--workdir={tmp_path / 'kept'}", config=config)
    assert done.returncode == 0, done.stdout
    head, *lines, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        line.split()[:2] for line in wanted[2].splitlines()
    ]
    assert [line.split()[0] for line in lines[1:]] == list(verify.CHECKS)
    assert head.startswith("small run: 9 steps") and last.startswith("all hold")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    rows = tiny.rows(tmp_path / "kept" / "killed")
    assert [row["step"] for row in rows] == list(range(1, resume.STEPS + 1))
    said = (tmp_path / "kept/killed/run.log").read_text()
    assert said.count("continuing from step") == len(resume.KILLS)


@pytest.mark.slow
def test_a_resume_that_reads_a_batch_twice_fails(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DEFECT)
    done = command("--only=resume", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout
    table = done.stdout.splitlines()[2:]
    assert table[0].split()[:2] == ["resume", "FAIL"] and "metrics.jsonl" in table[0]
    assert table[1].startswith("failed: resume")


def test_the_small_run_keeps_what_the_command_line_sets(tmp_path):
    overrides = ["--config.batch_size=4", "--config.model.d_ff=24"]
    config = load("configs/bert_base.py", overrides)
    given = {"batch_size", "model.d_ff"}
    tree = verify.small(config, given, tmp_path, full=False)
    assert (tree["batch_size"], tree["seq_len"], tree["steps"]) == (4, 128, 9)
    model = tree["model"]
    assert (model["num_layers"], model["d_model"], model["d_ff"]) == (2, 96, 24)
    assert tree["data"]["cache"] == str(tmp_path) and not tree["evals"]
    full = verify.small(config, given, tmp_path, full=True)["model"]
    assert (full["num_layers"], full["d_model"]) == (12, 768)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--only=resume,pading"], "error[config] --only: found 'pading'"),
        (["--workdir=lm"], "error[config] --workdir lm: found a directory that is not"),
        (["--nothing"], "error[config] "),
    ],
)
def test_wrong_flags_are_refused(flags, line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert verify.main([f"--config={CONFIG}", *flags]) == 2
    assert line in capsys.readouterr().err
