"""N1 to N5: numbers that are not finite, spikes, wrong bits, no memory."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import run as runs
from lm import train
from lm.errors import NumericalError
from lm.host.process import run_main
from tests import tiny

# The trees compiled here are two: with an update that halts, and one that does not.
RUN = {"evals": {}, "checkpoint": {"every": 3, "keep_last": 9}, "steps": 8}


@pytest.fixture
def poison(monkeypatch):
    """A function that makes a batch of a number bad, by a factor on its weights."""
    bad = {}
    real = runs.open_batches

    def open_batches(corpus, program, first, last):
        batches = real(corpus, program, first, last)
        for number, (batch, tokens) in zip(range(first, last), batches):
            if number in bad:
                batch = batch | {"weights": batch["weights"] * bad[number]}
            yield batch, tokens

    monkeypatch.setattr(runs, "open_batches", open_batches)
    return bad


def examples_of(workdir, number, rows=8):
    corpus, _ = tiny.program(tiny.config(**RUN), workdir)
    places = [corpus.stream.locate(number * rows + r) for r in range(rows)]
    return " ".join(":".join(map(str, place)) for place in places)


def finite_checkpoints(workdir):
    from lm.workdir import checkpoint

    found = []
    for step in sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")):
        state = checkpoint.find(workdir, step)
        host = json.loads((state / "host.json").read_text())
        found.append(step)
        assert host is not None
    bits = tiny.state_bits(workdir)
    for name, data in bits.items():
        if "step" not in name and len(data) % 4 == 0:
            assert np.isfinite(np.frombuffer(data, np.float32)).all(), name
    return found


def test_N1_stop_names_step_examples_and_module_and_saves_nothing(tmp_path, poison):
    poison[4] = np.nan
    with pytest.raises(NumericalError) as caught:
        tiny.run(RUN, tmp_path)
    line = caught.value.line()
    assert caught.value.exit_code == 6
    assert "error[numerical] step 5: " in line
    assert "first bad: the batch weights" in line
    assert (
        f"batch 4 of the examples (source:epoch:row) {examples_of(tmp_path, 4)}" in line
    )
    assert finite_checkpoints(tmp_path) == [3]
    assert [row["step"] for row in tiny.rows(tmp_path)] == [1, 2, 3, 4]
    poison.clear()
    assert tiny.run(RUN, tmp_path) == 0  # the data repaired, it goes on
    assert [row["step"] for row in tiny.rows(tmp_path)] == list(range(1, 9))


@pytest.mark.slow
def test_N1_skip_leaves_the_update_out_and_goes_on(tmp_path, poison):
    changes = RUN | {"stop": {"on_nonfinite": "skip", "max_skips": 1}}
    poison[4] = np.inf
    assert tiny.run(changes, tmp_path) == 0
    rows = tiny.rows(tmp_path)
    assert [row["optim/applied"] for row in rows] == [1, 1, 1, 1, 0, 1, 1, 1]
    assert not np.isfinite(rows[4]["train/loss"])
    assert rows[4]["optim/parameter_norm"] == rows[3]["optim/parameter_norm"]
    assert rows[5]["optim/lr"] == rows[6]["optim/lr"]
    assert finite_checkpoints(tmp_path) == [3, 6, 8]
    assert tiny.host(tmp_path)["refused"] == [5]
    assert "warning: step 5" in (tmp_path / "run.log").read_text()
    poison[6] = np.nan
    again = tmp_path / "again"
    with pytest.raises(NumericalError, match="step 7"):  # the second is one too many
        tiny.run(changes, again)
    assert finite_checkpoints(again) == [3, 6]


@pytest.mark.slow
def test_N1_rollback_leaves_the_window_out_also_after_a_kill(tmp_path, poison):
    changes = RUN | {"stop": {"on_nonfinite": "rollback"}}
    poison[4] = np.nan
    straight = tmp_path / "straight"
    assert tiny.run(changes, straight) == 0
    rows = tiny.rows(straight)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["train/batch"] for row in rows] == [0, 1, 2, 5, 6, 7, 8, 9]
    assert tiny.host(straight)["skipped"] == [[3, 2]]
    assert "back to step 3" in (straight / "run.log").read_text()
    for lost in (("6", "8"), ("8",)):  # killed before and after the next save
        workdir = tmp_path / "-".join(lost)
        shutil.copytree(straight, workdir)
        for step in lost:
            shutil.rmtree(workdir / "checkpoints" / step)
        assert tiny.run(changes, workdir) == 0
        assert tiny.raw_rows(workdir) == tiny.raw_rows(straight)
        assert tiny.state_bits(workdir) == tiny.state_bits(straight)
        assert tiny.host(workdir) == tiny.host(straight)


@pytest.mark.slow
def test_N2_a_spike_sends_the_run_back_and_a_replay_decides_alike(tmp_path, poison):
    stop = {"on_spike": "rollback", "window": 3, "spike": 50.0}
    changes = RUN | {"stop": stop}
    poison[5] = 1e3  # the loss is a mean: weights count there twice
    real = train.guard.judge

    def spiked(stop, faults, step, metrics):
        if faults.batch(step) == 5:
            metrics = metrics | {"train/loss": np.float32(1e3)}
        return real(stop, faults, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.guard, "judge", spiked)
        for name in ("a", "b"):
            assert tiny.run(changes, tmp_path / name) == 0
    rows = tiny.rows(tmp_path / "a")
    assert [row["train/batch"] for row in rows] == [0, 1, 2, 6, 7, 8, 9, 10]
    assert tiny.raw_rows(tmp_path / "a") == tiny.raw_rows(tmp_path / "b")
    assert "deviations above" in (tmp_path / "a" / "run.log").read_text()


@pytest.mark.slow
def test_N3_fresh_processes_threads_and_cache_change_no_bit(server, golden, tmp_path):
    cold = tmp_path / "cache"
    cold.mkdir(mode=0o700)
    one = tmp_path / "one"
    environ = {"LM_COMPILE_CACHE": str(cold), "OMP_NUM_THREADS": "1"}
    done = server.run(one, before="tests.faults.hooks:one_core", **environ)
    assert done.code == 0, done.text()
    assert tiny.raw_rows(one) == tiny.raw_rows(golden)
    assert tiny.state_bits(one) == tiny.state_bits(golden)


def test_N4_an_update_that_gives_other_bits_the_second_time_ends_the_run(
    tmp_path, monkeypatch
):
    changes = RUN | {"stop": {"recheck": 2}}
    assert tiny.run(changes | {"steps": 3}, tmp_path / "sound") == 0
    real, calls = train.diagnose.bits, []

    def flipped(tree):
        calls.append(1)
        found = real(tree)
        if len(calls) == 4:
            found["params/layers/mlp/up/kernel"] ^= 1 << 7
        return found

    monkeypatch.setattr(train.diagnose, "bits", flipped)
    with pytest.raises(NumericalError, match=r"step 4: .*layers/mlp/up/kernel.*again"):
        tiny.run(changes, tmp_path / "faulty")
    assert finite_checkpoints(tmp_path / "faulty") == [3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_N4_one_flipped_bit_changes_the_number_of_a_leaf(dtype):
    leaf = jnp.asarray(np.random.default_rng(0).integers(0, 2, 64), dtype)
    before = int(train.diagnose.bits({"a": leaf})["a"])
    data = bytearray(np.asarray(leaf).tobytes())
    data[len(data) // 2] ^= 1
    other = np.frombuffer(bytes(data), leaf.dtype)
    assert int(train.diagnose.bits({"a": jnp.asarray(other)})["a"]) != before


def test_N5_no_memory_is_called_so(capsys):
    def fail():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: need 12 GiB, have 9 GiB")

    assert run_main(fail) == 5
    line = capsys.readouterr().err
    assert line.startswith("error[storage] memory: ") and "12 GiB" in line
    assert "halve batch_size" in line and len(line.splitlines()) == 1
    assert run_main(lambda: jnp.ones((1 << 45,)).block_until_ready()) == 5
