"""E1 to E8: disks, paths, clocks and file systems that are not as they should be."""

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from lm.errors import StorageError
from lm.host import storage
from lm.workdir import checkpoint, writer
from lm.workdir.checkpoint import Checkpoint, Checkpointer
from tests import tiny

HOOKS = "tests.faults.hooks:"


@pytest.mark.slow
def test_E1_a_disk_that_fills_during_a_save(server, golden, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(golden, run)
    kept = {4, 6, 8}
    done = server.run(
        run, "--config.steps=12", before=HOOKS + "small_files", SMALL="20000"
    )
    assert done.code == 5, done.text()
    line = done.error()
    assert line.startswith("error[storage] ") and "need " in line and "free " in line
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert {int(name) for name in names if name.isdecimal()} == kept
    assert checkpoint.find(run).name == "8"
    again = server.run(run, "--config.steps=10")  # and with room it goes on
    assert again.code == 0, again.text()
    assert [row["step"] for row in tiny.rows(run)] == [*range(1, 11)]


def test_E1_a_disk_without_room_is_refused_before_anything_is_compiled(
    tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(StorageError, match=r"need 6,400 bytes, free 100 bytes"):
        saver = Checkpointer(tmp_path, Checkpoint())
        saver.check_room({"w": jnp.ones(1600)})


@pytest.mark.parametrize("kind", ["file", "read-only", "long"])
def test_E2_a_workdir_that_cannot_be(server, tmp_path, kind):
    (tmp_path / "file").write_text("kept")
    places = {
        "file": tmp_path / "file" / "run",
        "read-only": Path("/proc/lm-run"),
        "long": tmp_path / ("x" * 300),
    }
    began = time.monotonic()
    done = server.run(places[kind])
    assert done.code == 5, done.text()
    assert time.monotonic() - began < 10
    assert str(places[kind])[:40] in done.error() and "compiled" not in done.text()
    assert (tmp_path / "file").read_text() == "kept"


def test_E3_one_workdir_one_run(server, golden, tmp_path):
    run = tmp_path / "run"
    first = server.start(run, before=HOOKS + "data_that_stop")
    first.await_text("no more data")
    before = (run / "run.log").read_bytes()
    began = time.monotonic()
    second = server.run(run)
    assert second.code == 7 and time.monotonic() - began < 10
    assert f"process {first.pid}@" in second.error() and "since" in second.error()
    assert (run / "run.log").read_bytes().startswith(before)
    reader = server.run(run, module="lm.evaluate", config="")
    assert reader.code in (0, 4), reader.text()  # 4: nothing is saved yet
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert (run / "lock").exists()
    third = server.run(run)
    assert third.code == 0 and "taken over from process" in third.text()
    assert tiny.raw_rows(run) == tiny.raw_rows(golden)
    assert not (run / "lock").exists()


PATHS = ["with space/änd ☃ 火", "x" * 250, "a/../b", "trailing/"]


@pytest.mark.parametrize(
    "name",
    [PATHS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PATHS[1:])],
    ids=["unicode", "long", "dots", "slash"],
)
def test_E4_any_path_works_and_resumes(server, golden, tmp_path, name):
    (tmp_path / "a").mkdir()
    run = f"{tmp_path}/{name}"
    assert server.run(run, LM_CRASHPOINT="step:6").code == -9
    done = server.run(run)
    assert done.code == 0, done.text()
    assert tiny.raw_rows(Path(run)) == tiny.raw_rows(golden)
    assert tiny.state_bits(Path(run)) == tiny.state_bits(golden)


@pytest.mark.slow
def test_E4_links_and_relative_paths(server, golden, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert server.run(tmp_path / "link", LM_CRASHPOINT="step:6").code == -9
    relative = os.path.relpath(tmp_path / "real", Path(__file__).parents[2])
    assert server.run(relative).code == 0
    assert tiny.raw_rows(tmp_path / "real") == tiny.raw_rows(golden)


def test_E5_a_clock_that_goes_back_changes_no_order(tmp_path, monkeypatch):
    now = [1.7e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    saver = Checkpointer(tmp_path, Checkpoint(keep_last=2))
    for step in (8, 9, 10, 11):
        now[0] -= 86400
        saver.save(step, {"w": jnp.full(3, float(step))}, {"at": step})
        saver.wait()
        os.utime(tmp_path / "checkpoints" / str(step), (now[0], now[0]))
    assert saver.steps() == [10, 11]
    assert saver.restore({"w": jnp.zeros(3)})[1] == {"at": 11}
    saver.close()
    names = {p.name for p in (tmp_path / "checkpoints").rglob("*")}
    assert not [name for name in names if "17000" in name]


@pytest.mark.slow
def test_E5_a_run_in_another_time_zone_is_the_same(server, golden, tmp_path):
    assert server.run(tmp_path, LM_CRASHPOINT="step:6", TZ="Asia/Tokyo").code == -9
    for file in tmp_path.rglob("*"):
        os.utime(file, (2e9, 2e9))  # from the future
    assert server.run(tmp_path, TZ="America/Lima").code == 0
    assert tiny.raw_rows(tmp_path) == tiny.raw_rows(golden)


class Flaky:
    """The module `os` of a file system that fails at a share of what it is asked."""

    def __init__(self, share, errors, seed=0, lost=0.5):
        self._rng, self._share, self._errors = random.Random(seed), share, errors
        self._lost = lost  # how often a rename is done, and called a failure
        self.failures = 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in ("open", "fsync", "rename", "stat", "ftruncate"):
            return real

        def act(*arguments, **keywords):
            if self._rng.random() < self._share:
                self.failures += 1
                done = name == "rename" and self._rng.random() < self._lost
                if done:  # It was done, and the answer was lost.
                    real(*arguments, **keywords)
                number = self._rng.choice(self._errors)
                raise OSError(number, os.strerror(number))
            return real(*arguments, **keywords)

        return act


def saves(place, steps):
    """What a run makes durable, arrays aside: rows, commits, a pointer, removals."""
    rows = storage.Appender(place / "rows")
    for step in steps:
        rows.write(f"{step}\n")
        rows.sync()
        partial = place / f"{step}.partial"
        partial.mkdir()
        (partial / "array").write_bytes(bytes([step]) * 3000)
        storage.commit(partial, place / str(step), step=step)
        storage.write_json(place / "best", {"step": step})
        if step > 2:
            storage.remove_tree(place / str(step - 2))
    rows.close()


def test_E6_a_stumbling_file_system_is_asked_again(tmp_path, monkeypatch):
    flaky = Flaky(0.1, [errno.EIO, errno.ESTALE])
    monkeypatch.setattr(storage, "os", flaky)
    monkeypatch.setattr(storage, "PAUSES", (0.001,) * 4)
    saves(tmp_path, range(1, 40))
    monkeypatch.undo()
    assert flaky.failures > 40
    assert (tmp_path / "rows").read_text() == "".join(f"{n}\n" for n in range(1, 40))
    for step in (38, 39):
        storage.verify(tmp_path / str(step), step=step)
    assert json.loads((tmp_path / "best").read_text()) == {"step": 39}
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.isdecimal())
    assert left == ["best", "rows"]


def test_E6_one_that_never_answers_is_5_and_loses_nothing(tmp_path, monkeypatch):
    saves(tmp_path, [1])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(storage, "os", Flaky(1.0, [errno.EIO], lost=0.0))
    monkeypatch.setattr(storage, "PAUSES", (0.001,) * 4)
    for act in (
        lambda: storage.write_text(tmp_path / "best", "{}"),
        lambda: storage.remove_tree(tmp_path / "1"),
        lambda: storage.verify(tmp_path / "1"),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.exit_code == 5
    monkeypatch.undo()
    for path, data in before.items():
        moved = (
            tmp_path / "1.removed" / path.relative_to(tmp_path / "1")
            if (not path.exists())
            else path
        )
        assert moved.read_bytes() == data


def test_E6_what_is_not_ours_is_not_removed(tmp_path):
    place = tmp_path / "checkpoints"
    for name in ("notes", "12.keep", "best.txt", "007"):
        (place / name).mkdir(parents=True)
    Checkpointer(tmp_path, Checkpoint(keep_last=1)).close()
    assert sorted(os.listdir(place)) == ["007", "12.keep", "best.txt", "notes"]


def test_E7_a_logger_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *_):
            raise ConnectionError("the server is down")

    monkeypatch.setattr(writer, "_TensorBoard", Broken)
    with writer.Writer(tmp_path, writer.Log(), stream=open(os.devnull, "w")) as out:
        out.start(0, every=1, total_steps=3)
        for step in (1, 2, 3):
            timing = {"time": 0.0, "tokens": 1, "step_seconds": 1.0}
            out.row(step, {"train/loss": 1.0}, timing)
    assert [row["step"] for row in tiny.rows(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "run.log").read_text().count("warning: TensorBoard is off") == 1


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "train/lo', b'{"step": 3}\n{"step": 4}\n', b"\x00\x00\n"]
)
def test_E8_torn_and_surplus_rows_are_cut_to_the_checkpoint(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(good + tail)
    writer.cut(path, 2)
    assert path.read_bytes() == good
