"""C1 to C10: killed, told to stop, frozen; and resumed."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import trees
from lm.host import storage
from lm.workdir import checkpoint
from tests import tiny

LM = Path(storage.__file__).parents[1]
TRIALS = int(os.environ.get("LM_KILLS", "50"))
HOOKS = "tests.faults.hooks:"


def bits(workdir):
    """The leaves of the newest state, which any number of devices has saved."""
    from orbax.checkpoint import v1 as ocp

    step = checkpoint.find(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.checkpointables_metadata(step).metadata["state"],
    )
    state = checkpoint.read_state(step, wanted)
    return {path: np.asarray(x).tobytes() for path, x in trees.flatten(state).items()}


def same(workdir, golden):
    """The end of a run is that of the undisturbed one, bit for bit."""
    assert tiny.raw_rows(workdir) == tiny.raw_rows(golden)
    assert bits(workdir) == bits(golden)
    assert tiny.host(workdir) == tiny.host(golden)
    left = [p.name for p in (workdir / "checkpoints").iterdir()]
    assert not [name for name in left if "." in name], left


def steps(workdir):
    names = [p.name for p in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def inside_a_save(workdir):
    return any((workdir / "checkpoints").glob("*.partial*"))


def kill_at_random(server, workdir, rng, longest, *flags):
    """Kills a run after a random time; returns whether a save was on its way."""
    running = server.start(workdir, *flags)
    time.sleep(rng.uniform(0.3, longest))
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return inside_a_save(workdir)


@pytest.mark.slow
def test_C1_a_kill_at_a_random_time(server, golden, tmp_path):
    began = time.monotonic()
    server.run(tmp_path / "warm")
    longest = time.monotonic() - began
    kill_at_random(server, tmp_path / "run", random.Random(), longest)
    assert server.run(tmp_path / "run").code == 0
    same(tmp_path / "run", golden)


@pytest.mark.slow
@pytest.mark.timeout(0)  # LM_KILLS may be many
def test_C1_many_kills_at_random_times(server, tmp_path):
    """LM_KILLS of them; a third must fall into a save, which is made at every step."""
    flags = ["--config.checkpoint.every=1"]
    golden = tmp_path / "golden"
    assert server.run(golden, *flags).code == 0
    began = time.monotonic()
    assert server.run(tmp_path / "timed", *flags).code == 0
    longest = time.monotonic() - began
    # Most of a run goes into its start, where there is nothing to tear.
    rng, saving = random.Random(os.environ.get("LM_SEED")), 0
    for trial in range(TRIALS):
        workdir = tmp_path / str(trial)
        if trial % 3 == 0:
            saving += kill_at_random(server, workdir, rng, longest, *flags)
        else:
            running = server.start(workdir, *flags)
            running.await_text("compiled")
            time.sleep(rng.uniform(0, 0.3 * longest))
            if trial % 3 == 1:  # Aimed: as soon as a save has begun.
                while running.poll() is None and not inside_a_save(workdir):
                    pass
                time.sleep(rng.uniform(0, 0.005))
            with contextlib.suppress(ProcessLookupError):  # It may have ended.
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            saving += inside_a_save(workdir)
        done = server.run(workdir, *flags)
        assert done.code == 0, (trial, done.text())
        same(workdir, golden)
        shutil.rmtree(workdir)
    print(f"\n{TRIALS} kills, {saving} within a save")
    assert saving >= 0.3 * TRIALS


def crash_points():
    """Each crash point of the code, with the passages at which to die."""
    names = set()
    for file in LM.rglob("*.py"):
        names |= set(re.findall(r'crash_point\("([\w-]+)"\)', file.read_text()))
    assert len(names) >= 18, names
    names |= {"data", "restore", "compilation", "step", "batch", "evaluation", "save"}
    once = {"data", "restore", "compilation", "remove-renamed", "remove-done"}
    once |= {"barrier"}  # of several processes only
    times = {name: (1,) if name in once else (1, 2, 4) for name in names}
    return [f"{name}:{k}" for name in sorted(times) for k in times[name]]


@pytest.mark.parametrize(
    "point",
    [
        "commit-renamed:2",
        *(pytest.param(p, marks=pytest.mark.slow) for p in crash_points()),
    ],
)
def test_C2_a_kill_at_each_named_point(server, golden, tmp_path, point):
    killed = server.run(tmp_path / "run", LM_CRASHPOINT=point)
    if point.startswith("barrier"):
        assert killed.code == 0
    else:
        assert killed.code in (-signal.SIGKILL, 0), killed.text()
    again = server.run(tmp_path / "run")
    assert again.code == 0, again.text()
    same(tmp_path / "run", golden)
    assert killed.code < 0 or "finished" in killed.text()


@pytest.mark.parametrize(
    "borders", ["reset", pytest.param("ignore", marks=pytest.mark.slow)]
)
def test_C2_a_killed_run_goes_on_with_the_state_that_its_model_carries(
    server, tmp_path, borders
):
    """`configs/gru.py` on rows that follow each other, killed between saves."""
    text = tmp_path / "text.txt"
    documents = [record["text"] for record in tiny.documents(80)]
    text.write_text("\n\n".join(documents), encoding="utf-8")
    settings = {
        "data.order": "stream",
        "objective.borders": borders,
        "seq_len": 8,
        "model.d_model": 16,
        "tokenizer.vocab_size": 300,
        "checkpoint.every": 3,
    }
    flags = [f"--config.{path}={value}" for path, value in settings.items()]
    options = {"config": f"configs/gru.py:quick,text={text}"}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert server.run(whole, *flags, **options).code == 0
    killed = server.run(run, *flags, LM_CRASHPOINT="step:8", **options)
    assert killed.code == -signal.SIGKILL, killed.text()
    carried = [x for path, x in bits(run).items() if path.startswith("carried/")]
    assert carried and any(any(x) for x in carried)
    again = server.run(run, *flags, **options)
    assert again.code == 0, again.text()
    assert re.search("continuing from step [36]\n", again.text()), again.text()
    same(run, whole)


@pytest.mark.slow
def test_C3_many_kills_of_one_run_also_while_restoring(server, golden, tmp_path):
    points = [
        "save-arrays:2",
        "restore:1",
        "compilation:1",
        "step:2",
        "commit-synced:1",
    ]
    points += ["restore:1", "batch:2", "save-pointed:1", "evaluation:1"]
    last = 0
    for point in points:
        assert server.run(tmp_path, LM_CRASHPOINT=point).code == -9
        now = max(steps(tmp_path), default=0)
        assert now >= last
        last = now
        assert len(list((tmp_path / "checkpoints").glob("*.*"))) <= 2
    assert server.run(tmp_path).code == 0
    same(tmp_path, golden)


@pytest.mark.parametrize(
    ("point", "saved"),
    [
        pytest.param("compilation:1", 1, marks=pytest.mark.slow),
        ("evaluation:1", 5),
        pytest.param("data:1", None, marks=pytest.mark.slow),
        pytest.param("restore:1", None, marks=pytest.mark.slow),
        pytest.param("step:1", 1, marks=pytest.mark.slow),
        pytest.param("step:5", 5, marks=pytest.mark.slow),
        pytest.param("batch:3", 3, marks=pytest.mark.slow),
        pytest.param("save:1", 3, marks=pytest.mark.slow),
    ],
)
def test_C4_sigterm_in_each_phase(server, golden, tmp_path, point, saved):
    stopped = server.run(tmp_path, LM_CRASHPOINT=f"{point}:SIGTERM")
    assert stopped.code == 75, stopped.text()
    assert "Traceback" not in stopped.text()
    assert max(steps(tmp_path), default=None) == saved
    if saved:
        assert [row["step"] for row in tiny.rows(tmp_path)][-1] == saved
    assert server.run(tmp_path).code == 0
    same(tmp_path, golden)


@pytest.mark.slow
def test_C4_sigterm_while_the_data_do_not_come(server, golden, tmp_path):
    running = server.start(tmp_path, before=HOOKS + "data_that_stop")
    running.await_text("no more data")
    began = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(30) == 75
    assert time.monotonic() - began < 30
    assert steps(tmp_path)[-1] == tiny.rows(tmp_path)[-1]["step"]
    assert server.run(tmp_path).code == 0
    same(tmp_path, golden)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 75),
        pytest.param(
            [signal.SIGINT, signal.SIGTERM, signal.SIGINT],
            130,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_C5_a_second_signal_never_tears_a_save(server, golden, tmp_path, numbers, code):
    running = server.start(tmp_path, before=HOOKS + "slow")
    running.await_text("step 2/8")
    for number in numbers:
        os.kill(running.pid, number)
        time.sleep(0.05)
    assert running.wait() == code, running.text()
    assert running.wait() == code  # And again, as of a run that ended before its kill.
    for step in steps(tmp_path):
        storage.verify(tmp_path / "checkpoints" / str(step), step=step)
    assert not inside_a_save(tmp_path)
    assert server.run(tmp_path).code == 0
    same(tmp_path, golden)


# ── C6: a power loss forgets what was not synced ─────────────────────────────────────


class Disk:
    """Follows what storage does to a folder, and tells what a power loss would leave.

    A file's bytes last from its fsync; a name (of a rename, or of a new file) lasts
    from the fsync of its folder, and until then either the old or the new one may be
    found. After a folder is renamed, what it holds goes with it.
    """

    def __init__(self, root):
        self.root, self.states = root, []
        self.synced = {}  # file -> bytes that last
        self.names = {}  # file -> the bytes under this name that last

    def after_fsync(self, path):
        path = Path(path)
        if path.is_file():
            self.synced[path] = path.read_bytes()
        else:
            for old in [p for p in self.names if p.parent == path and not p.exists()]:
                del self.names[old]
            for old in [p for p in self.names if path in p.parents and not p.exists()]:
                del self.names[old]
            for file in path.rglob("*"):
                if file.is_file() and (file.parent == path or self._named(file, path)):
                    self.names[file] = self.synced.get(file, b"")
        self.states.append(dict(self.names))

    def _named(self, file, path):
        """A file deeper down, in a folder that was synced before it was renamed."""
        return file in self.synced

    def after_rename(self, old, new):
        old, new = Path(old), Path(new)
        for table in (self.synced,):
            for path in [p for p in table if p == old or old in p.parents]:
                target = new if path == old else new / path.relative_to(old)
                table[target] = table.pop(path)

    def write(self, number, place):
        for path, data in self.states[number].items():
            target = place / path.relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def test_C6_a_power_loss_at_any_sync_leaves_whole_checkpoints(tmp_path, monkeypatch):
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root)
    fsync, rename = os.fsync, os.rename

    def followed_fsync(handle):
        fsync(handle)
        disk.after_fsync(os.readlink(f"/proc/self/fd/{handle}"))

    def followed_rename(old, new):
        rename(old, new)
        disk.after_rename(old, new)

    monkeypatch.setattr(os, "fsync", followed_fsync)
    monkeypatch.setattr(os, "rename", followed_rename)
    committed = []
    for step in (1, 2, 3):
        partial = root / f"{step}.partial"
        (partial / "state").mkdir(parents=True)
        (partial / "state" / "array").write_bytes(bytes([step]) * 5000)
        storage.write_json(partial / "host.json", {"at": step})
        storage.commit(partial, root / str(step), step=step)
        committed.append(len(disk.states) - 1)
        storage.write_json(root / "best", {"step": step})
    monkeypatch.undo()
    assert len(disk.states) > 15
    for number in range(len(disk.states)):
        place = tmp_path / f"after-{number}"
        place.mkdir()
        disk.write(number, place)
        found = sorted(int(p.name) for p in place.iterdir() if p.name.isdecimal())
        for step in found:  # whatever has the name of a step is whole
            storage.verify(place / str(step), step=step)
        lasting = [step for step, n in enumerate(committed, start=1) if n <= number]
        assert found[-1:] == lasting[-1:] or len(found) > len(lasting)
        if (place / "best").exists():
            assert json.loads((place / "best").read_text())["step"] in (1, 2, 3)


def test_C6_a_name_without_a_sync_is_seen(tmp_path, monkeypatch):
    """The model itself: without the sync of its bytes a file would come back empty."""
    disk = Disk(tmp_path)
    (tmp_path / "a").write_bytes(b"bytes")
    disk.after_fsync(tmp_path)
    assert disk.states[-1] == {tmp_path / "a": b""}
    disk.after_fsync(tmp_path / "a")
    disk.after_fsync(tmp_path)
    assert disk.states[-1] == {tmp_path / "a": b"bytes"}


# ── C7 to C9: two processes ──────────────────────────────────────────────────────────

PAIR = ["--config.mesh.data=2", "--config.steps=8"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def golden_pair(server, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pair") / "run"
    both = server.pair(workdir, free_port(), *PAIR)
    assert [one.wait(200) for one in both] == [0, 0], [one.text() for one in both]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("row", ["C7", "C8"])
def test_C7_C8_the_other_ends_with_8_and_both_go_on(
    server, golden_pair, tmp_path, row, victim
):
    """C7: one of two processes is killed; C8: it is frozen."""
    workdir = tmp_path / "run"
    both = server.pair(workdir, free_port(), *PAIR, before=HOOKS + "slow")
    both[0].await_text("step 4/8")
    number = {"C7": signal.SIGKILL, "C8": signal.SIGSTOP}[row]
    os.kill(both[victim].pid, number)
    began = time.monotonic()
    other = both[1 - victim]
    assert other.wait(40) == 8, other.text()
    assert time.monotonic() - began <= 15
    line = [t for t in other.text().splitlines() if t.startswith("error[peer]")]
    assert len(line) == 1 and f"process {victim} (" in line[0], other.text()
    assert re.search(r"lost at (step|batch|evaluation|save)", line[0])
    if row == "C8":
        assert "Thread" in (workdir / "stacks.txt").read_text()
        os.kill(both[victim].pid, signal.SIGKILL)
    both[victim].wait()
    both = server.pair(workdir, free_port(), *PAIR)
    assert [one.wait(200) for one in both] == [0, 0], [one.text() for one in both]
    same(workdir, golden_pair)


@pytest.mark.slow
def test_C9_a_process_that_stands_still_in_a_barrier_is_named(server, tmp_path):
    # The first two compare the configs, with the limit of the start.
    each = ({}, {"LM_CRASHPOINT": "barrier:4:stall"})
    both = server.pair(
        tmp_path / "run", free_port(), *PAIR, LM_PHASE_LIMIT="20", each=each
    )
    codes = [one.wait(200) for one in both]
    assert codes == [8, 8]
    lines = [t for t in both[0].text().splitlines() if t.startswith("error[peer]")]
    assert len(lines) == 1 and "process 1 (" in lines[0], both[0].text()
    assert "crash_point" in (tmp_path / "run" / "stacks.txt").read_text()


def test_C10_the_loader_has_threads_and_no_processes(server, tmp_path):
    """Nothing of it can be killed apart; what its threads raise ends the run."""
    running = server.start(tmp_path, before=HOOKS + "slow")
    running.await_text("step 2/8")
    tasks = list(Path(f"/proc/{running.pid}/task").iterdir())
    assert len(tasks) > 3
    assert not "".join((task / "children").read_text() for task in tasks).strip()
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -9
