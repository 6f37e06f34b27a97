"""C1, C3 and several processes, for job=fit: what training promises, passes keep."""

import os
import signal

import numpy as np
import pytest

from lm import verify
from tests import tiny
from tests.faults.test_c_crashes import bits, same
from tests.test_processes import free_port

MIXTURE = "tests/fitted.py:mixture"
NGRAMS = "tests/fitted.py"


@pytest.fixture(scope="module")
def golden_mixture(server, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mixture") / "run"
    done = server.run(workdir, config=MIXTURE)
    assert done.code == 0, done.text()
    return workdir


@pytest.mark.parametrize(
    "point", tiny.few(["step:6", "batch:45", "commit-renamed:4"], ["step:6"])
)
def test_C1_a_fit_that_is_killed(server, golden_mixture, tmp_path, point):
    workdir = tmp_path / "run"
    killed = server.run(workdir, config=MIXTURE, LM_CRASHPOINT=point)
    assert killed.code == -signal.SIGKILL, killed.text()
    again = server.run(workdir, config=MIXTURE)
    assert again.code == 0 and "continuing from step" in again.text(), again.text()
    same(workdir, golden_mixture)


def test_C3_a_fit_that_is_told_to_stop_within_a_pass(server, golden_mixture, tmp_path):
    workdir = tmp_path / "run"
    point = "batch:30:SIGTERM"  # in the fourth pass, after one that is not saved yet
    stopped = server.run(workdir, config=MIXTURE, LM_CRASHPOINT=point)
    assert stopped.code == 75, stopped.text()
    assert "stopped after step 3" in stopped.text()
    again = server.run(workdir, config=MIXTURE)
    assert again.code == 0 and "continuing from step 3" in again.text(), again.text()
    assert tiny.raw_rows(workdir) == tiny.raw_rows(golden_mixture)
    assert bits(workdir) == bits(golden_mixture)


@pytest.mark.slow
def test_C3_before_the_first_pass_has_ended(server, tmp_path):
    workdir = tmp_path / "run"
    stopped = server.run(workdir, config=NGRAMS, LM_CRASHPOINT="batch:2:SIGINT")
    assert stopped.code == 130, stopped.text()
    assert not list((workdir / "checkpoints").iterdir())
    assert server.run(workdir, config=NGRAMS).code == 0
    straight = tmp_path / "straight"
    assert server.run(straight, config=NGRAMS).code == 0
    assert bits(workdir) == bits(straight)


@pytest.mark.slow
@pytest.mark.parametrize("config", [NGRAMS, MIXTURE])
def test_two_processes_are_one(server, tmp_path, config):
    flags = ("--config.mesh.data=2",)
    assert server.run(tmp_path / "one", *flags, config=config, devices=2).code == 0
    two = server.pair(tmp_path / "two", free_port(), *flags, config=config)
    assert [each.wait() for each in two] == [0, 0], [each.text() for each in two]
    if config == NGRAMS:
        assert bits(tmp_path / "two") == bits(tmp_path / "one")
    rows = zip(tiny.rows(tmp_path / "one"), tiny.rows(tmp_path / "two"), strict=True)
    for ours, theirs in rows:
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5)


@pytest.mark.slow
def test_lm_verify_holds_for_a_fit(tmp_path, capsys):
    flags = [f"--config={os.path.abspath(NGRAMS)}", f"--workdir={tmp_path / 'run'}"]
    assert verify.main(flags) == 0
    said = capsys.readouterr().out
    assert said.count("pass") == 1 and said.count("none ") >= 8, said
