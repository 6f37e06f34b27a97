"""The command line: what is refused, with which code, how fast, and what is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.main import main

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--config=configs/bert_tiny.py:quick"

BAD_CONFIG = [
    ([QUICK, "--config.optim.lrr=1e-3"], "optim.lrr", "optim.lr"),
    ([QUICK, "--config.optim.lr=-1"], "optim.lr", "-1"),
    ([QUICK, "--config.optim.lr=fast"], "optim.lr", "'fast'"),
    ([QUICK, "--config.optim.lr=nan"], "optim.lr", "nan"),
    ([QUICK, "--config.optim.name=adamww"], "optim.name", "adamw"),
    ([QUICK, "--config.optim.warmup=21"], "optim.warmup", "20"),
    ([QUICK, "--config.steps=-5"], "steps", "-5"),
    ([QUICK, "--config.batch_size=8.5"], "batch_size", "8.5"),
    ([QUICK, "--config.seq_len=1024"], "seq_len", "512"),
    ([QUICK, "--config.model.name=transfomer"], "model.name", "transformer"),
    ([QUICK, "--config.model.dropout=1.5"], "model.dropout", "1.5"),
    ([QUICK, "--config.grad_accum=3"], "grad_accum", "3"),
    ([QUICK, "--config.stop.metric=heldot/loss"], "stop.metric", "heldout"),
    (["--config=configs/bert_tiny.py:quik"], "quik", "quick"),
    (["--config=configs/bert_tinny.py"], "bert_tinny", "bert_tiny"),
    ([QUICK, "--wrkdir=x"], "--wrkdir", ""),
    ([], "--config", ""),
]


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def refusal(capsys, argv, code):
    assert main(argv) == code
    shown = capsys.readouterr().err.strip()
    assert len(shown.splitlines()) == 1, shown
    return shown


@pytest.mark.parametrize("argv, where, hint", BAD_CONFIG, ids=lambda v: str(v)[-40:])
def test_a_bad_config_is_one_line_and_leaves_nothing(
    argv, where, hint, tmp_path, here, capsys
):
    workdir = tmp_path / "run"
    line = refusal(capsys, [*argv, f"--workdir={workdir}"], 2)
    assert line.startswith("error[config] ")
    assert where in line
    assert hint in line
    assert not workdir.exists()


BAD_DATA = [
    ("text", "none.txt", None, "none.txt"),
    ("text", "empty.txt", b"", "empty.txt"),
    ("text", "blank.txt", b"\n \n", "blank.txt"),
    ("text", "utf8.txt", b"good\n\nbad \x80 byte\n", "utf8.txt:3"),
    ("jsonl", "a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2"),
    ("jsonl", "b.jsonl", b'{"txt": "a"}\n', "b.jsonl:1"),
    ("tsv", "c.tsv", b"text\tlabel\na\t1\nb\n", "c.tsv:3"),
    ("csv", "d.csv", b"body,label\na,1\n", "d.csv"),
]


@pytest.mark.parametrize("kind, name, content, where", BAD_DATA, ids=lambda v: str(v))
def test_bad_data_name_file_and_line(
    kind, name, content, where, tmp_path, here, capsys
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    argv = [QUICK, f"--workdir={tmp_path / 'run'}"]
    for place in ("data", "evals.heldout.data", "evals.filled.data"):
        argv.append(f"--config.{place}.sources.0.name={kind}")
        argv.append(f"--config.{place}.sources.0.files={file}")
    line = refusal(capsys, argv, 3)
    assert line.startswith("error[data] ")
    assert where in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_that_may_not_be_written(tmp_path, here, capsys):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in refusal(capsys, [QUICK, f"--workdir={tmp_path}/run"], 5)


def test_a_workdir_that_is_a_file(tmp_path, here, capsys):
    (tmp_path / "file").write_text("kept")
    line = refusal(capsys, [QUICK, f"--workdir={tmp_path}/file/run"], 5)
    assert f"{tmp_path}/file" in line
    assert (tmp_path / "file").read_text() == "kept"


def test_a_mistake_is_answered_within_three_seconds():
    """In a process of its own, as a user meets it."""
    command = [sys.executable, "-m", "lm.main", QUICK, "--config.optim.lrr=1"]
    began = time.monotonic()
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - began < 3
    assert found.returncode == 2
    assert "did you mean optim.lr?" in found.stderr
    assert "Traceback" not in found.stderr


def test_debug_shows_the_traceback(here, capsys):
    assert main([QUICK, "--config.optim.lrr=1", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_code_in_an_override_stays_text(tmp_path, here, capsys):
    canary = tmp_path / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for field in ("optim.lr", "seed", "data.sources", "model.preset"):
        refusal(capsys, [QUICK, f"--config.{field}={code}", f"--workdir={tmp_path}"], 2)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.model.num_layers=1000000", "model.num_layers"),
        ("--config.model.vocab_size=2147483648", "model.vocab_size"),
        ("--config.model.d_model=9223372036854775807", "model.d_model"),
        ("--config.optim.lr=1e39", "optim.lr"),
        ("--config.batch_size=99999999999999999999999", "batch_size"),
        ("--workdir=\udcff\udcfe", "--workdir"),
        ("--workdir=a\0b", "--workdir"),
        ("--config.data.cache=\udcff", "flags"),
        ("--wrokdir=x", "did you mean --workdir?"),
        ("--config.optim.name=\x1b[31mred", r"\x1b[31mred"),
    ],
)
def test_an_absurd_value_is_a_line_at_once(here, capsys, flag, named):
    began = time.monotonic()
    assert main(["--config=tests/faults/config.py", flag]) == 2
    said = capsys.readouterr().err
    assert time.monotonic() - began < 3
    assert named in said and len(said.splitlines()) == 1 and "\x1b" not in said


def test_a_workdir_with_a_name_that_is_too_long(here, capsys):
    assert main(["--config=tests/faults/config.py", f"--workdir={'x' * 5000}"]) == 5
    said = capsys.readouterr().err
    assert "name too long" in said and len(said) < 1000
