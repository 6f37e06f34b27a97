"""lm.sweep: what it refuses, how it runs on, and what it makes of runs that fail."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lm import results, sweep
from lm.config import resolve as configs
from lm.host import lock
from tests import tiny, xla

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "tests/sweeping.py"


@pytest.fixture
def ask(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)

    def run(*argv, config=CONFIG):
        code = sweep.main([f"--config={config}", *map(str, argv)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize(
    ("flags", "code", "found"),
    [
        ("--config.modl.order=3", 2, "setting model.order=2,seed=0: modl: found"),
        (
            "--grid=model.ordr=1,2",
            2,
            "setting model.order=2,model.ordr=1,seed=0: model",
        ),
        ("--grid=model.order=3,0", 2, "setting model.order=0,seed=0: model.order: fou"),
        ("--grid=model.order=", 2, "--grid: found 'model.order=', no value"),
        ("--grid=steps=2,2.0", 2, "and model.order=2,steps=2.0,seed=0, which are one"),
        ("--config.model.order=3", 2, "--grid=model.order=3 replaces the values"),
        ("--folds=1", 2, "--folds: found '1'"),
        ("--folds=2", 2, "evals: found none of the records that data.sources has"),
        ("--seeds=5,x", 2, "--seeds: found '5,x'"),
        ("--seeds=4294967296,1", 2, "setting model.order=2,seed=4294967296: seed"),
        ("--jobs=0", 2, "--jobs: found '0'"),
        ("--jobs=x", 2, "--jobs: found 'x'"),
        ("--metrics=heldout/los", 2, "did you mean heldout/loss"),
        ("--metrics=dev/loss", 2, "--metrics: found 'dev/loss'"),
        ("--select=test/loss", 2, "--select: found 'test/loss', of a test set"),
        ("--select=heldout/perplexity", 2, "--mode: found nothing"),
        ("--config.checkpoint.best=none --at=best", 2, "--at: found 'best'"),
        ("--show", 2, "found no sweep"),
        ("--sedes=3", 2, "did you mean --seeds"),
        ("--config=tests/sweping.py", 2, "no such file"),
        ("--json=README.md/x.json", 5, "is not a directory"),
    ],
)
def test_it_refuses_before_anything_runs(ask, tmp_path, flags, code, found):
    argv = [f"--workdir={tmp_path / 'new'}", *flags.split()]
    got, out, error = ask(*argv)
    assert got == code and found in error and not out, (out, error)
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_refused(ask, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code, _, error = ask(f"--workdir={tmp_path}")
    assert code == 2 and "a folder that is not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    other = results.Result("configs/other.py", "seed=0", "seed=0", {"seed": 0})
    results.write(tmp_path / "sweep.jsonl", [other])
    code, _, error = ask(f"--workdir={tmp_path}")
    assert (
        code == 4 and f"a sweep of configs/other.py, expected one of {CONFIG}" in error
    )
    results.write(tmp_path / "sweep.jsonl", [])
    with lock.of_workdir(tmp_path, print):
        code, _, error = ask(f"--workdir={tmp_path}")
    assert code == 7 and f"process {os.getpid()}@" in error
    (tmp_path / "sweep.jsonl").write_text("[]\n")
    code, _, error = ask(f"--workdir={tmp_path}")
    assert code == 3 and "sweep.jsonl:1" in error


def test_without_anything_to_vary_it_says_how(ask, tmp_path):
    code, _, error = ask(f"--workdir={tmp_path}", config="tests/fitted.py")
    assert code == 2 and "--seeds, --folds or --grid" in error


def test_the_commands_are_listed_for_elsewhere(ask, tmp_path):
    argv = ("--list", f"--workdir={tmp_path / 'a b'}", "--seeds=1", "--config.steps=2")
    code, out, error = ask(*argv, "--grid=model.k=0.5,1")
    assert code == 0, error
    commands = [shlex.split(line) for line in out.splitlines()]
    assert len(commands) == 4 and not (tmp_path / "a b").exists()
    assert commands[1] == [
        *("python", "-m", "lm.main", f"--config={CONFIG}", "--config.steps=2"),
        *("--config.model.order=2", "--config.model.k=1", "--config.seed=0"),
        f"--workdir={tmp_path / 'a b' / 'model.order=2,model.k=1,seed=0'}",
    ]


SWEPT = [
    file.stem
    for file in sorted((ROOT / "configs").glob("*.py"))
    if "\ndef sweep(" in file.read_text()
]


@pytest.mark.parametrize("name", SWEPT)
def test_the_sweeps_of_the_configs_can_run(ask, tmp_path, name):
    assert {"bert_tiny", "glue", "sst2"} <= {*SWEPT}
    argv = ("--list", f"--workdir={tmp_path / 'new'}")
    code, out, error = ask(*argv, config=f"configs/{name}.py:quick")
    assert code == 0 and 4 <= len(out.splitlines()) <= 9, error
    full = len(sweep.sweeps.read(f"configs/{name}.py"))
    assert full >= len(out.splitlines())


def test_nothing_is_chosen_by_a_test_set(tmp_path):
    def choose(*flags, best="dev/x"):
        argv = [f"--config={CONFIG}", *flags]
        config = {"checkpoint": {"best": best, "best_mode": "max"}, "evals": {"e": {}}}
        return sweep.choose(sweep.parse(argv)[0], configs.from_json(json.dumps(config)))

    assert choose() == (("dev/x",), "best", "dev/x", "max", "e", "dev/x")
    assert choose(best="test/x") == (
        *(("test/x",), "best", None, "max"),
        *("e", "test/x"),
    )
    assert choose("--metrics=test/x", "--at=last")[:3] == (("test/x",), "last", "dev/x")
    assert choose("--select=e/y", "--mode=min")[:4] == (("e/y",), "best", "e/y", "min")
    assert choose("--select=none")[:3] == (("dev/x",), "best", None)
    assert choose(best=None) == ((), "last", None, "max", "e", None)


# ── With other commands in place of lm.main ─────────────────────────────────────────

# A run that writes its metrics, and ends with the codes of its file in turn.
SCRIPT = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
codes = (folder / "codes").read_text().split() or ["0"]
(folder / "codes").write_text(" ".join(codes[1:]))
(folder / "config.json").write_text(sys.argv[3])
(folder / "metrics.jsonl").write_text('{"heldout/loss": %s, "step": 1}' % sys.argv[2]
    + chr(10))
print("step 1", flush=True)
if codes[0] == "wait":
    time.sleep(60)
if codes[0] != "0":
    print("error[some] why: found it", flush=True)
sys.exit(int(codes[0]))
"""


@pytest.fixture
def swept(ask, tmp_path, monkeypatch):
    """Runs a sweep of four scripts, `codes` by the number of the run; its output."""
    check = sweep.check

    def planned(*arguments):
        plans, choice = check(*arguments)
        commands = [
            ["-c", SCRIPT, str(p.workdir), str(n / 10), configs.to_json(p.config)]
            for n, p in enumerate(plans)
        ]
        return [p._replace(command=c) for p, c in zip(plans, commands)], choice

    monkeypatch.setattr(sweep, "check", planned)
    monkeypatch.setattr(sweep, "AGAIN", 0.05)
    folders = [
        f"model.order={order},seed={seed}" for order in (2, 3) for seed in (0, 1)
    ]

    def run(*flags, codes=()):
        for folder in folders:
            (tmp_path / "swept" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "swept" / folder / "codes").write_text("")
        for number, text in dict(codes).items():
            (tmp_path / "swept" / folders[number] / "codes").write_text(text)
        if not (tmp_path / "swept" / "sweep.jsonl").exists():
            results.write(tmp_path / "swept" / "sweep.jsonl", [])
        code, out, error = ask(f"--workdir={tmp_path / 'swept'}", *flags)
        assert not error
        return code, out, [*results.read(tmp_path / "swept" / "sweep.jsonl").values()]

    return run


def test_a_failed_run_is_counted_and_tried_again(swept, tmp_path):
    code, out, rows = swept(codes={1: "6"})
    assert code == 1
    assert [row.status for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1].code == 6 and rows[1].error == "error[some] why: found it"
    assert rows[2].last == {"heldout/loss": 0.2, "step": 1}
    assert "[2/4] model.order=2,seed=1: failed in" in out and ", left 0:0" in out
    assert "failed: model.order=2,seed=1: exit code 6: error[some]" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:]), out
    line = next(line for line in out.splitlines() if line.startswith("model.order=2 *"))
    assert line.split() == [
        "model.order=2",
        "*",
        "0.0000",
        "-",
        "-",
        "0.0000",
        "1",
        "1",
    ]
    assert (tmp_path / "swept" / "table.txt").read_text() in out
    code, out, rows = swept("--show", "--json", str(tmp_path / "t.json"))
    assert code == 0 and "exit code 6" in out  # nothing ran
    assert json.loads((tmp_path / "t.json").read_text())["settings"][0]["failed"] == 1
    (tmp_path / "swept" / rows[3].folder / "config.json").unlink()  # it is gone
    code, out, rows = swept()
    assert code == 0 and [row.attempts for row in rows] == [1, 2, 1, 2]
    assert {row.status for row in rows} == {"done"} and rows[1].error is None


def test_a_run_that_another_process_holds_is_awaited(swept):
    code, out, rows = swept("--jobs=2", codes={0: "7 7 0", 2: "75"})
    assert code == 75  # somebody stopped the third one
    assert [row.status for row in rows] == ["done", "done", "stopped", "done"]
    assert rows[0].attempts == 3 and out.count("It is tried again") == 1
    assert "1 of 4 runs are not done" in out


def test_jobs_run_side_by_side_and_a_signal_ends_them_all(swept, tmp_path):
    def stop():
        output = [tmp_path / "swept" / f"model.order=2,seed={n}" for n in (0, 1)]
        deadline = time.monotonic() + 60
        while not all((place / "output.log").exists() for place in output):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code, out, rows = swept("--jobs=2", codes={0: "wait", 1: "wait"})
    thread.join()
    assert code == 75 and "stopped, 0 done, 4 to do; the same command" in out
    assert [row.status for row in rows] == ["stopped", "stopped", "waiting", "waiting"]


# ── With lm.main ────────────────────────────────────────────────────────────────────


def start(folder, *flags, config=CONFIG, cwd=ROOT):
    """Starts the command in a process of its own."""
    environ = {
        "XLA_FLAGS": xla.FLAGS,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("LM_TEST_COMPILED", ""),
    }
    command = [sys.executable, "-m", "lm.sweep", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={folder}", *flags],
        cwd=cwd,
        env=os.environ | {k: v for k, v in environ.items() if v},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_table(tmp_path):
    folder, config = tmp_path / "swept", f"{ROOT / CONFIG}:broken"
    first = start(folder, config=config, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while '"done"' not in (text := _read(folder / "sweep.jsonl")):
        assert first.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.05)
    first.kill()
    first.communicate()
    second = start(folder, config=config, cwd=tmp_path)
    out = second.communicate()[0]
    assert second.returncode == 1, out
    one, two, three = results.read(folder / "sweep.jsonl").values()
    assert (one.status, one.attempts) == ("done", 1) and two.status == "done"
    assert three.status == "failed" and three.code == 3 and "late.txt" in three.error
    assert "exit code 3: error[data]" in " ".join(out.split())
    for row, order in ((one, 2), (two, 3)):
        run = folder / f"model.order={order}"
        loss = tiny.rows(run)[-1]["heldout/loss"]
        assert row.last["heldout/loss"] == row.best["heldout/loss"] == loss
        assert f"{loss:.4f}" in out
    lines = [f"{word} runs here and there.\n" for word in tiny.WORDS]
    (tmp_path / "late.txt").write_text("".join(lines * 4))
    third = start(folder, config=config, cwd=tmp_path)
    out = third.communicate()[0]
    assert third.returncode == 0, out
    rows = [*results.read(folder / "sweep.jsonl").values()]
    assert [row.status for row in rows] == ["done"] * 3 and rows[0] == one
    assert rows[2].attempts == 2 and rows[2].error is None


def _read(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_folds_are_a_partition_and_are_pooled(tmp_path):
    flags = ("--folds=2", f"--json={tmp_path / 'table.json'}")
    done = start(tmp_path / "swept", *flags, config=f"{CONFIG}:folds")
    out = done.communicate()[0]
    assert done.returncode == 0, out
    rows = [*results.read(tmp_path / "swept" / "sweep.jsonl").values()]
    held, right = [], []
    for row in rows:
        place = tmp_path / "swept" / row.folder / "predictions"
        text = (place / f"dev-{int(row.best['step'])}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        held.append({line["hash"] for line in lines})
        guesses = [max(p := line["probabilities"], key=p.get) for line in lines]
        right += [g == line["label"] for g, line in zip(guesses, lines)]
    assert [len(fold) for fold in held] == [12, 12] and not held[0] & held[1]
    [found] = json.loads((tmp_path / "table.json").read_text())["settings"]
    measured = found["metrics"]["dev/accuracy"]
    assert measured["pooled"] == pytest.approx(np.mean(right))
    assert measured["values"] == [row.best["dev/accuracy"] for row in rows]
    assert measured["n"] == 2 and "of 24 records in 2 folds" in out
