"""Whatever the input, a command ends in a line and a documented code, never in 1.

The trials are drawn from fixed seeds, so they are the same everywhere. LM_HOSTILE=10
makes ten times as many.
"""

import os
import random
import time
from pathlib import Path

import pytest

from lm import convert, evaluate, generate
from lm.main import main
from tests import tiny
from tests.faults import hostile
from tests.hf.goldens import PLACE

CODES = {0, 2, 3, 4, 5, 6, 7}
QUICK = ("--config.optim.warmup=0", "--config.steps=1")
TIMES = int(os.environ.get("LM_HOSTILE", 1))
SECONDS = 60  # that a command may take


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Commands use one of the simulated devices: they compile and run faster."""
    with tiny.some_devices(tiny.config()):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of an encoder, as a config file and its workdir."""
    folder = tmp_path_factory.mktemp("hostile")
    tree = tiny.tree(steps=2, optim__warmup=0, checkpoint={"every": 1, "keep_last": 3})
    tree["evals"]["heldout"]["every"] = 2
    tree["checkpoint"] = {"every": 1, "best": "heldout/loss"}
    file = folder / "config.py"
    file.write_text(f"def get_config(): return {tree!r}\n")
    assert main([f"--config={file}", f"--workdir={folder / 'run'}"]) == 0
    return file, folder / "run"


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A finished run of a decoder."""
    folder = tmp_path_factory.mktemp("speaking")
    argv = ["--config=tests/faults/config.py:decoder", f"--workdir={folder / 'run'}"]
    assert main([*argv, *QUICK]) == 0
    return folder / "run"


def hold(capsys, make, act, trials):
    """Runs a command on one input after another.

    Args:
      make: from a generator of random numbers to the arguments of the command.
      act: the command.
      trials: how many inputs.
    """
    for seed in range(trials * TIMES):
        argv = make(random.Random(seed))
        capsys.readouterr()
        start = time.monotonic()
        try:
            code = act(argv)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {argv} raised {error!r}")
        said = capsys.readouterr().err
        assert code in CODES, f"seed {seed}: {argv} ended with {code}: {said}"
        assert "Traceback" not in said and "error[bug]" not in said, (seed, argv, said)
        lines = [line for line in said.splitlines() if line.startswith("error[")]
        assert len(lines) == (code != 0), (seed, argv, said)
        assert all(line.isprintable() for line in lines), (seed, lines)
        assert time.monotonic() - start < SECONDS, (seed, argv)


@pytest.mark.slow
def test_any_override_is_taken_or_refused(capsys, tmp_path):
    """Up to where the workdir is looked at, which is a place that cannot be."""

    def make(draw):
        flags = hostile.overrides(draw)
        return ["--config=tests/faults/config.py", "--workdir=/dev/null/x", *flags]

    hold(capsys, make, main, 60)


@pytest.mark.slow
def test_any_override_that_is_taken_trains_or_refuses(capsys, tmp_path, monkeypatch):
    file = str(Path("tests/faults/config.py").absolute())
    monkeypatch.chdir(tmp_path)  # An override may name a folder to be made.

    def make(draw):
        flags = [f"--config={file}", *hostile.accepted_overrides(draw, file), *QUICK]
        return [*flags, f"--workdir={tmp_path / str(draw.random())}"]

    hold(capsys, make, main, 6)


@pytest.mark.slow
def test_any_data_file_is_read_or_refused(capsys, tmp_path):
    def make(draw):
        flags = ["--config=tests/faults/config.py", *QUICK]
        flags += hostile.data_file(draw, tmp_path)
        work = tmp_path / str(draw.random())
        return [*flags, "--config.evals=None", f"--workdir={work}"]

    hold(capsys, make, main, 20)


@pytest.mark.slow
@pytest.mark.parametrize("act", [main, evaluate.main], ids=["main", "evaluate"])
def test_any_workdir_goes_on_or_is_refused(capsys, tmp_path, trained, act):
    file, run = trained

    def make(draw):
        flags = [f"--workdir={hostile.workdir(draw, run, tmp_path)}"]
        if act is main:  # One in four makes a further step, which compiles.
            flags += [f"--config={file}", f"--config.steps={draw.choice((2, 2, 2, 3))}"]
        return flags

    hold(capsys, make, act, 20 if act is main else 8)


@pytest.mark.slow
def test_any_prompt_is_answered_or_refused(capsys, tmp_path, speaking):
    def make(draw):
        return [f"--workdir={speaking}", *hostile.prompts(draw, tmp_path)]

    hold(capsys, make, generate.main, 8)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bert_pretraining", "llama"])
def test_any_directory_of_hugging_face_is_read_or_refused(capsys, tmp_path, case):
    from tests.hf import folders

    place = folders.bert(tmp_path / "case", case) if "bert" in case else PLACE / case

    def make(draw):
        made = hostile.hugging_face(draw, place, tmp_path)
        return [f"--from=hf:{made}", f"--workdir={tmp_path / str(draw.random())}"]

    hold(capsys, make, convert.main, 12)
