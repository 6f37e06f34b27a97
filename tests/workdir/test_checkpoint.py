import json
import os
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.errors import CheckpointError, StorageError
from lm.host import storage
from lm.workdir import checkpoint as ckpt
from lm.workdir.checkpoint import Checkpoint, Checkpointer

KEEP_ALL = Checkpoint(keep_last=99)


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


def optimizer(name="adamw"):
    scale = {
        "adamw": optax.adamw(1e-3),
        "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=8),
    }[name]
    return optax.chain(optax.clip_by_global_norm(1.0), scale)


def make_state(seed=0, name="adamw", **shapes):
    """A state with uneven values everywhere, as after some steps."""
    shapes = {"kernel": (2, 16, 8), "bias": (2, 8), **shapes}
    params = {"layers": {k: jnp.zeros(s) for k, s in shapes.items()}}
    params["table"] = jnp.zeros((16, 4), jnp.bfloat16)
    state = State(jnp.int32(0), params, optimizer(name).init(params))
    random = np.random.default_rng(seed)
    draw = {
        "f": lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype),
        "V": lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype),
        "i": lambda x: jnp.asarray(random.integers(0, 99, x.shape), x.dtype),
    }
    return jax.tree.map(lambda x: draw[np.dtype(x.dtype).kind](x), state)


def abstract(state, devices=1):
    """Leaves whose second axis, where it divides, lies on that many devices."""
    mesh = jax.make_mesh(
        (devices,),
        ("fsdp",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )

    def leaf(x):
        split = x.ndim > 1 and x.shape[1] % devices == 0
        spec = P(None, "fsdp") if split else P()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state)


def put(state, devices):
    return jax.tree.map(
        lambda x, a: jax.device_put(x, a.sharding), state, abstract(state, devices)
    )


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def make(tmp_path):
    """A function that makes checkpointers over one workdir; they are closed after."""
    made, notes = [], []

    def make(policy=KEEP_ALL, **options):
        made.append(Checkpointer(tmp_path, policy, note=notes.append, **options))
        made[-1].notes = notes
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(make, name):
    state = make_state(name=name)
    saver = make()
    host = {"skipped": [3, 7], "best": 0.1}
    saver.save(12, put(state, 8), host)
    for devices in (8, 4, 1):
        got, got_host = saver.restore(abstract(state, devices))
        assert_same(got, state)
        assert got_host == host
        kernel = got.params["layers"]["kernel"]
        assert len(kernel.sharding.device_set) == devices
        assert kernel.addressable_shards[0].data.shape == (2, 16 // devices, 8)
    assert saver.steps() == [12] and saver.latest() == 12


def test_buffers_may_be_donated_as_soon_as_save_returns(make):
    wanted = make_state()
    state = put(make_state(), 8)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0
    )
    saver = make()
    saver.save(1, state, {})
    # Where the save still holds a buffer, jax copies it instead of giving it away.
    for _ in range(5):
        state = overwrite(state)
    jax.block_until_ready(state)
    assert_same(saver.restore(abstract(wanted))[0], wanted)


def test_a_host_that_changes_after_save_does_not_change_what_is_saved(make):
    saver, host, state = make(), {"skipped": [1]}, make_state()
    saver.save(1, state, host)
    host["skipped"].append(2)
    assert saver.restore(abstract(state))[1] == {"skipped": [1]}


def test_a_step_that_is_there_is_not_written_again(make):
    saver = make()
    saver.save(1, make_state(0), {"a": 1})
    saver.save(1, make_state(1), {"a": 2})
    got, host = saver.restore(abstract(make_state()))
    assert_same(got, make_state(0))
    assert host == {"a": 1}


@pytest.mark.parametrize(
    "policy, kept",
    [
        (Checkpoint(keep_last=1), [6]),
        (Checkpoint(keep_last=3), [4, 5, 6]),
        (Checkpoint(keep_last=1, keep_every=2), [2, 4, 6]),
        (Checkpoint(keep_last=1, best="held/loss"), [2, 6]),
        (Checkpoint(keep_last=1, best="held/loss", best_mode="max"), [1, 6]),
        (Checkpoint(keep_last=2, keep_every=3, best="held/loss"), [2, 3, 5, 6]),
    ],
)
def test_what_is_kept(make, tmp_path, policy, kept):
    saver, state = make(policy), {"w": jnp.zeros(3)}
    losses = {1: 9.0, 2: 1.0, 3: float("nan"), 5: 1.0}
    for step in range(1, 7):
        saver.save(step, state, {}, value=losses.get(step))
    saver.wait()
    assert saver.steps() == kept
    if policy.best:
        best = 2 if policy.best_mode == "min" else 1
        pointer = json.loads((tmp_path / "checkpoints" / "best").read_text())
        assert pointer["step"] == best and pointer["value"] == losses[best]
        assert ckpt.find(tmp_path, "best").name == str(best)
    assert not [n for n in os.listdir(tmp_path / "checkpoints") if "." in n]


def test_the_best_pointer_is_made_right_at_the_start(make, tmp_path):
    policy = Checkpoint(keep_last=9, best="held/loss")
    saver = make(policy)
    for step, value in {1: 3.0, 2: 2.0, 3: 4.0}.items():
        saver.save(step, {"w": jnp.zeros(3)}, {}, value=value)
    saver.wait()
    pointer = tmp_path / "checkpoints" / "best"
    pointer.write_text(pointer.read_text().replace("2", "3"))
    with pytest.raises(CheckpointError):
        ckpt.find(tmp_path, "best")
    pointer.write_text("torn {")
    with pytest.raises(CheckpointError, match="best"):
        ckpt.find(tmp_path, "best")
    make(policy)
    assert ckpt.find(tmp_path, "best").name == "2"
    make(Checkpoint(best="other/loss"))
    with pytest.raises(CheckpointError, match="the best one"):
        ckpt.find(tmp_path, "best")


def test_leftovers_of_an_interrupted_run_are_removed(make, tmp_path):
    saver = make()
    saver.save(1, make_state(), {})
    saver.wait()
    place = tmp_path / "checkpoints"
    for name in ("2.partial", "3.partial.orbax-checkpoint-tmp", "4.removed", "mine"):
        (place / name / "state").mkdir(parents=True)
    make()
    assert sorted(os.listdir(place)) == ["1", "mine"]


def damage(path, how):
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 4]) + data[1:])


def files_of(step_directory):
    return [p for p in sorted(step_directory.rglob("*")) if p.is_file()]


@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
def test_damage_to_any_file_of_a_step_is_found_and_named(make, tmp_path, how):
    saver = make()
    saver.save(5, make_state(), {})
    saver.wait()
    directory = tmp_path / "checkpoints" / "5"
    names = {p.name for p in files_of(directory)}
    assert {"host.json", "leaves.json", "MANIFEST.json", "_METADATA"} <= names
    for path in files_of(directory):
        data = path.read_bytes()
        if not data and how != "deleted":
            continue
        damage(path, how)
        with pytest.raises(CheckpointError) as caught:
            ckpt.find(tmp_path)
        assert caught.value.where == str(path) and caught.value.exit_code == 4
        path.write_bytes(data)
    ckpt.find(tmp_path)


def test_a_damaged_step_is_put_aside_and_an_older_one_is_used(make, tmp_path):
    saver = make()
    states = {step: make_state(step) for step in (1, 2, 3)}
    for step, state in states.items():
        saver.save(step, state, {"at": step})
    saver.wait()
    place = tmp_path / "checkpoints"
    damage(place / "3" / "leaves.json", "flipped")
    damage(place / "2" / "host.json", "deleted")
    saver = make()
    got, host = saver.restore(abstract(states[1]))
    assert_same(got, states[1])
    assert host == {"at": 1}
    assert sorted(os.listdir(place)) == ["1", "2.damaged", "3.damaged"]
    assert len(saver.notes) == 2
    assert "leaves.json" in saver.notes[0] and "host.json" in saver.notes[1]
    saver.save(3, states[3], {"at": 3})  # and the place is free again
    assert_same(saver.restore(abstract(states[3]))[0], states[3])
    damage(place / "3" / "host.json", "cut")
    make().restore(abstract(states[1]))
    assert (place / "3.damaged.2").is_dir()


def test_strict_refuses_a_damaged_step(make, tmp_path):
    saver = make(strict=True)
    for step in (1, 2):
        saver.save(step, make_state(), {})
    saver.wait()
    place = tmp_path / "checkpoints"
    damage(place / "2" / "host.json", "cut")
    with pytest.raises(CheckpointError, match="host"):
        saver.restore(abstract(make_state()))
    assert sorted(os.listdir(place)) == ["1", "2"]


def test_when_all_are_damaged_each_is_told_and_nothing_is_touched(make, tmp_path):
    saver = make()
    for step in (1, 2):
        saver.save(step, make_state(), {})
    saver.wait()
    place = tmp_path / "checkpoints"
    damage(place / "1" / "host.json", "cut")
    damage(place / "2" / "leaves.json", "deleted")
    for _ in range(2):  # the second attempt is no fresh start either
        saver = make()
        assert saver.latest() == 2
        with pytest.raises(CheckpointError) as caught:
            saver.restore(abstract(make_state()))
        for part in ("step 1: ", "host.json", "step 2: ", "leaves.json"):
            assert part in str(caught.value)


def test_a_step_asked_for_by_number_is_that_step_or_a_refusal(make, tmp_path):
    saver = make()
    for step in (1, 2):
        saver.save(step, make_state(step), {})
    got, _ = saver.restore(abstract(make_state()), step=1)
    assert_same(got, make_state(1))
    with pytest.raises(CheckpointError, match="MANIFEST"):
        saver.restore(abstract(make_state()), step=7)


def test_no_checkpoint_is_a_refusal_not_a_fresh_start(make, tmp_path):
    saver = make()
    assert saver.latest() is None
    with pytest.raises(CheckpointError, match="no step"):
        saver.restore(abstract(make_state()))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        ckpt.find(tmp_path / "elsewhere")


def test_a_state_that_does_not_fit_is_told_leaf_by_leaf(make):
    saver = make()
    saver.save(1, make_state(), {})
    other = make_state(kernel=(2, 16, 4), gate=(2, 8))
    other.params["table"] = other.params["table"].astype(jnp.float32)
    with pytest.raises(CheckpointError) as caught:
        saver.restore(abstract(other))
    found = caught.value.found
    assert (
        "params/layers/kernel: checkpoint float32 (2, 16, 8), run float32 (2, 16, 4)"
        in found
    )
    assert "params/table: checkpoint bfloat16 (16, 4), run float32 (16, 4)" in found
    assert "params/layers/gate: checkpoint nothing, run float32 (2, 8)" in found
    assert "opt_state" in found
    with pytest.raises(CheckpointError, match="run nothing"):
        saver.restore(abstract(make_state()._replace(opt_state=())))
    assert saver.steps() == [1]  # that is no damage


def test_a_failed_write_is_told_at_the_next_call_and_the_next_save_is_made(
    make, tmp_path, monkeypatch
):
    saver, state = make(), make_state()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "commit", full)
        saver.save(1, state, {})
        with pytest.raises(StorageError, match="no space left"):
            saver.wait()
        saver.save(2, state, {})
        with pytest.raises(StorageError, match="no space left"):
            saver.save(3, state, {})
    assert os.listdir(tmp_path / "checkpoints") == []
    saver.save(3, state, {})
    saver.wait()
    assert saver.steps() == [3]
    assert_same(saver.restore(abstract(state))[0], state)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Checkpointer(tmp_path / "file", Checkpoint())


def python(source, workdir, **env):
    return subprocess.run(
        [sys.executable, "-c", source, str(workdir)],
        env={**os.environ, "XLA_FLAGS": "", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


FULL = """
import resource, sys, numpy as np
from lm.workdir.checkpoint import Checkpoint, Checkpointer
from lm.errors import StorageError
saver = Checkpointer(sys.argv[1], Checkpoint())
random = np.random.default_rng(0)
saver.save(1, {"w": random.random(10)}, {})
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    saver.save(2, {"w": random.random(100_000)}, {})
    saver.wait()
except StorageError as error:
    print(error.line())
saver.save(3, {"w": random.random(10)}, {})
saver.close()
print(saver.steps())
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(tmp_path):
    done = python(FULL, tmp_path)
    line, steps = done.stdout.splitlines()
    assert line.startswith("error[storage] ") and "2.partial" in line
    assert "need 800,000 bytes, free" in line
    assert steps == "[1, 3]"
    assert done.stderr == ""
    assert ckpt.find(tmp_path, 1).name == "1"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "3"]


SAVES = """
import sys, jax.numpy as jnp
from lm.workdir.checkpoint import Checkpoint, Checkpointer
saver = Checkpointer(sys.argv[1], Checkpoint(keep_last=1, best="held/loss"))
for step in range((saver.latest() or 0) + 1, 4):
    saver.save(step, {"w": jnp.full((9,), step)}, {"at": step}, value=-float(step))
saver.close()
"""
POINTS = [
    "save-start",
    "save-copied",
    "save-arrays",
    "commit-manifest",
    "commit-renamed",
    "save-pointed",
    "remove-renamed",
]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_during_a_save_leaves_a_good_step(tmp_path, point):
    k = 1 if point == "remove-renamed" else 2
    assert python(SAVES, tmp_path, LM_CRASHPOINT=f"{point}:{k}").returncode == -9
    for directory in (tmp_path / "checkpoints").iterdir():
        if directory.name.isdecimal():
            storage.verify(directory, step=int(directory.name))
    assert int(ckpt.find(tmp_path).name) >= 1
    assert python(SAVES, tmp_path).returncode == 0
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "best"]
    assert ckpt.find(tmp_path, "best").name == "3"


TWO = """
import sys, jax, numpy as np
workdir, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, process, initialization_timeout=60)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lm.workdir.checkpoint import Checkpoint, Checkpointer
from lm.errors import PeerError
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, P("data"))
values = np.arange(32, dtype=np.float32).reshape(8, 4)
w = jax.make_array_from_callback(values.shape, sharding, lambda place: values[place])
saver = Checkpointer(workdir, Checkpoint(keep_last=1), limit=3)
for step in (1, 2):
    saver.save(step, {"w": w}, {"at": step})
saver.wait()
assert saver.steps() == [2]
abstract = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)}
state, host = saver.restore(abstract)
assert host == {"at": 2}
for shard in state["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index])
saver.save(3, {"w": w}, {"at": 3})
if process == 0:
    try:
        saver.wait()
    except PeerError as error:
        print(error.line())
    open(f"{workdir}/told", "w").close()
else:
    import os, time
    while not os.path.exists(f"{workdir}/told"):
        time.sleep(0.1)
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_wait_with_a_limit(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path), port, str(i)],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        texts = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert "error[peer] process 0: " in texts[0][0], texts
    assert ckpt.find(tmp_path).name == "3"
    saver = Checkpointer(tmp_path, KEEP_ALL)  # and one process reads what two wrote
    state, _ = saver.restore(abstract({"w": jnp.zeros((8, 4))}))
    np.testing.assert_array_equal(state["w"], np.arange(32.0).reshape(8, 4))
    saver.close()
