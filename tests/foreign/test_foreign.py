"""A stranger's model and objective, through every command.

The two are modules outside lm, which names them nowhere.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lm import convert, evaluate, generate, main, verify
from lm.decoding.cached import CachedModel
from lm.models import base
from tests import tiny
from tests.foreign import decay

CONFIG = "tests/foreign/config.py"
NAMES = ("decay", "skipgram")


def allowed(name):
    return f"--allow-code=tests.foreign.{name}"


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Each trained by the command."""
    found = {}
    for name in NAMES:
        found[name] = tmp_path_factory.mktemp(name)
        argv = [f"--config={CONFIG}:{name}", f"--workdir={found[name]}"]
        assert main.main(argv) == 0
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_is_evaluated(workdirs, name, capsys):
    rows = tiny.rows(workdirs[name])
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[7]["heldout/loss"] < rows[3]["heldout/loss"]
    timing = (workdirs[name] / "timing.jsonl").read_text().splitlines()
    assert json.loads(timing[-1])["tokens_per_second"] > 0
    assert all("mfu" not in json.loads(line) for line in timing)
    capsys.readouterr()
    argv = [f"--workdir={workdirs[name]}", allowed(name)]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed[printed.index("{") :])
    last = {k: v for k, v in rows[-1].items() if k.startswith("heldout/")}
    assert {k: found[k] for k in last} == pytest.approx(last)


@pytest.mark.parametrize("options", [(), ("--beams=3",), ("--temperature=1.0",)])
def test_it_generates(workdirs, options, capsys):
    argv = [f"--workdir={workdirs['decay']}", allowed("decay"), "--max-tokens=6"]
    capsys.readouterr()
    assert generate.main([*argv, *options, "the old dog", "a cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.strip() for line in lines)


def test_what_it_cannot_do_is_refused_in_a_line(workdirs, capsys):
    place = [f"--workdir={workdirs['skipgram']}", allowed("skipgram")]
    assert generate.main([*place, "the old dog"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error[config]") and "Traceback" not in error
    argv = [f"--config={CONFIG}:skipgram", "--config.objective.name=causal_lm"]
    assert main.main([*argv, f"--workdir={workdirs['skipgram'] / 'new'}"]) == 2
    assert "cannot" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_no_family_of_hugging_face_has_it(workdirs, name, tmp_path, capsys):
    to = tmp_path / "out"
    argv = [f"--workdir={workdirs[name]}", f"--to=hf:{to}", allowed(name)]
    assert convert.main(argv) == 2
    assert "error[config]" in capsys.readouterr().err.splitlines()[-1]
    assert not to.exists()


def test_its_state_is_reordered_by_the_axis_that_it_declares():
    model = decay.Model(vocab_size=9)
    cached = CachedModel(model, np.ones(9, bool), 2)
    cache = model.make_cache(3, 0, 0)
    rows = jnp.arange(3.0)[None, :, None]
    cache |= {"sums": cache["sums"] + rows}
    twice = cached.repeat(cache, 2)
    np.testing.assert_array_equal(twice["sums"][:, :, 0], [[0, 0, 1, 1, 2, 2]] * 2)
    turned = cached.reorder(twice, jnp.array([1, 0, 2, 2, 5, 4]))
    np.testing.assert_array_equal(turned["sums"][0, :, 0], [0, 0, 1, 1, 2, 2])
    turned = cached.reorder(cache, jnp.array([2, 0, 1]))
    np.testing.assert_array_equal(turned["sums"][1, :, 5], [2, 0, 1])
    assert turned["count"] is cache["count"]


def test_it_is_a_model_by_the_contract():
    model = decay.Model(vocab_size=9)
    assert isinstance(model, base.Decodes) and not isinstance(model, base.Headed)
    assert model.can <= base.ABILITIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_verified(name):
    """All checks, the two kills among them, after which it ends bit for bit alike."""
    done = subprocess.run(
        [sys.executable, "-m", "lm.verify", f"--config={CONFIG}:{name}"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split()[:2] for line in done.stdout.splitlines()[2:-1])
    assert set(found) == set(verify.CHECKS)
    passed = {check for check, word in found.items() if word == "pass"}
    assert passed >= {"resume", "padding", "order", "accumulation", "devices"}
    assert ("cache" in passed) == ("packing" in passed) == (name == "decay")
