"""The Python face: light to import, and the same as the commands from anywhere."""

import asyncio
import json
import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest

import lm
from lm import __main__ as commands
from lm import evaluate, generate
from lm.errors import ConfigError, Refusal
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]


def tree(**changes):
    decoder = {"model__kind": "decoder", "objective": {"name": "causal_lm"}}
    decoder |= {"model__position": "rope", "model__token_types": 0, "mesh__data": 8}
    return tiny.tree(**decoder | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny decoder, trained by `lm.train` inside a running event loop."""
    workdir = tmp_path_factory.mktemp("face") / "run"

    async def cell():
        return lm.train(tree(), workdir, overrides={"steps": 4, "optim.lr": 1e-3})

    return asyncio.run(cell())


def python(code, folder, **environ):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
    )


def test_import_lm_is_light(tmp_path):
    code = (
        "import sys, time; before = {*sys.modules}; began = time.perf_counter();"
        "import lm; took = time.perf_counter() - began;"
        "print(took, *sorted({*sys.modules} - before))"
    )
    found = [python(code, tmp_path).stdout.split() for _ in range(3)]
    assert min(float(words[0]) for words in found) < 0.05
    assert {*found[0][1:]} <= {"lm", "types", "__future__"}  # nothing of its own


def test_a_run_is_what_was_asked_for(run):
    assert run.step == 4
    assert run.config.optim.lr == 1e-3
    assert json.loads((run.workdir / "config.json").read_text())["steps"] == 4


def test_evaluate_gives_what_the_command_prints(run, capsys):
    assert evaluate.main([f"--workdir={run.workdir}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"step": 4} | run.evaluate() == printed
    assert run.evaluate("heldout") == run.evaluate()
    with pytest.raises(ConfigError, match="did you mean heldout"):
        run.evaluate("heldot")


def test_generate_gives_what_the_command_prints(run, capsys):
    prompts = ["the old dog", "a red bird sees"]
    assert generate.main([f"--workdir={run.workdir}", "--max-tokens=3", *prompts]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert run.generate(prompts, max_tokens=3) == printed
    assert run.generate([]) == []
    for found in run.search(prompts, max_tokens=3, beams=2, n_best=2):
        assert len(found) == 2
        assert found[0][1] >= found[1][1]
    with pytest.raises(ConfigError, match="did you mean temperature"):
        run.generate(prompts, temprature=1.0)
    with pytest.raises(ConfigError, match="top_p"):
        run.generate(prompts, top_p=2.0)


def test_open_chooses_the_checkpoint(run):
    assert lm.open(run.workdir).step == 4
    assert lm.open(str(run.workdir), 4).step == 4
    with pytest.raises(Refusal):
        lm.open(run.workdir, 3)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        lm.open(run.workdir / "checkpoints")


def test_train_is_a_module_and_a_function(run):
    from lm import train

    assert train.train.__module__ == "lm.train"
    assert lm.train is train
    with pytest.raises(ConfigError, match="did you mean optim"):
        lm.train(tree(), run.workdir, overrides={"optim.lrr": 1})
    with pytest.raises(ConfigError, match="workdir"):
        lm.train(tree())


def test_the_commands_are_found_from_any_folder(tmp_path):
    for words in (["-m", "lm.main"], ["-m", "lm"], ["-m", "lm", "main"]):
        found = subprocess.run(
            [sys.executable, *words, "--config=configs/bert_tiny.py:quik"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert found.returncode == 2
        assert "did you mean quick?" in found.stderr, found.stderr


def test_lm_lists_its_commands(capsys):
    assert commands.main([]) == 0
    shown = capsys.readouterr().out
    for name in ("main", "evaluate", "generate", "convert", "verify"):
        assert f"  {name} " in shown
    assert commands.main(["evalate"]) == 2
    assert "did you mean evaluate?" in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_is_no_bug():
    code = (
        "import sys; from lm import __main__ as lm;"
        "code = lm.main([]) or lm.main([]); sys.stdout.flush(); sys.exit(code)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-u", "-c", code], cwd=ROOT, stdout=writer, stderr=-1
    )
    os.close(writer)
    assert found.returncode == 141
    assert found.stderr == b""


def test_a_run_is_trained_and_asked_off_the_main_thread(run, tmp_path):
    """As in the executor of a notebook: without signals, and with the same result."""
    with futures.ThreadPoolExecutor(1) as threads:
        changes = {"steps": 4, "optim.lr": 1e-3}
        other = threads.submit(lm.train, tree(), tmp_path / "run", overrides=changes)
        assert other.result().evaluate() == run.evaluate()
