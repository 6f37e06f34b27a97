"""K1 to K11: damage to checkpoints, and checkpoints that do not fit."""

import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm import transfer
from lm.config import resolve as configs
from lm.errors import CheckpointError, StorageError
from lm.host import storage
from lm.workdir import adopt, checkpoint
from lm.workdir.checkpoint import Checkpoint, Checkpointer, Init
from tests import tiny

FILES = Path(__file__).with_name("format-1")


def saved(workdir, steps=(1, 2), seed=0, **options):
    """Checkpoints of a small state, as a run leaves them."""
    random = np.random.default_rng(seed)
    saver = Checkpointer(workdir, Checkpoint(keep_last=9), **options)
    state = {
        "params": {
            "a": {"kernel": jnp.asarray(random.random((40, 30)), jnp.float32)},
            "b": {"kernel": jnp.asarray(random.random((40, 30)), jnp.float32)},
        },
        "step": jnp.int32(0),
    }
    for step in steps:
        saver.save(step, state | {"step": jnp.int32(step)}, {"at": step})
    saver.close()
    return workdir, state


def files(workdir, step):
    return sorted(
        p for p in (workdir / f"checkpoints/{step}").rglob("*") if p.is_file()
    )


def restored(workdir, state):
    """The step that a run would go on with, and what it says."""
    notes = []
    saver = Checkpointer(workdir, Checkpoint(keep_last=9), note=notes.append)
    try:
        return saver.restore(state)[1]["at"], notes
    finally:
        saver.close()


@pytest.mark.parametrize(
    "trials", [40, pytest.param(500, marks=pytest.mark.slow)], ids=str
)
def test_K1_a_flipped_bit_anywhere_is_found_and_its_file_named(tmp_path, trials):
    workdir, _ = saved(tmp_path)
    rng, places = random.Random(trials), files(tmp_path, 2)
    sizes = [p.stat().st_size for p in places]
    for trial in range(trials):
        # Every third into any file alike, else where most bytes are.
        alike = trial % 3 == 0
        path = rng.choices(places, [s > 0 if alike else s for s in sizes])[0]
        good = path.read_bytes()
        at, bit = rng.randrange(len(good)), rng.randrange(8)
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        with pytest.raises(CheckpointError) as caught:
            checkpoint.find(workdir)
        assert caught.value.where == str(path), (path, at, bit)
        path.write_bytes(good)
        assert checkpoint.find(workdir).name == "2"  # and no false alarm


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def biggest(workdir, step):
    return max(files(workdir, step), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "file",
    tiny.few(
        ["arrays", "host.json", "leaves.json", "config.json", "MANIFEST.json"],
        fast=["arrays"],
    ),
)
def test_K1_the_run_goes_on_from_the_step_before(server, golden, tmp_path, file):
    for name in ("run", "strict"):
        shutil.copytree(golden, tmp_path / name)
        step = tmp_path / name / "checkpoints" / "8"
        flip(biggest(tmp_path / name, 8) if file == "arrays" else step / file)
    if file == "arrays":
        strict = server.run(tmp_path / "strict", "--strict", "--config.steps=10")
        assert strict.code == 4 and "checkpoints/8" in strict.error()
    more = server.run(tmp_path / "run", "--config.steps=10")
    assert more.code == 0, more.text()
    assert "warning: checkpoint 8 is damaged" in more.text()
    assert "continuing from step 6" in more.text()
    assert [row["step"] for row in tiny.rows(tmp_path / "run")] == [*range(1, 11)]
    assert tiny.raw_rows(tmp_path / "run").startswith(tiny.raw_rows(golden)[:100])


@pytest.mark.parametrize("how", ["cut", "emptied", "zeroed", "deleted"])
def test_K2_each_file_in_turn(tmp_path, how):
    workdir, state = saved(tmp_path)
    assert len(files(workdir, 2)) >= 8
    for path in files(workdir, 2):
        data = path.read_bytes()
        forms = {"cut": data[:-3], "emptied": b"", "zeroed": bytes(len(data))}
        if how == "deleted":
            path.unlink()
        elif forms[how] == data:
            continue
        else:
            path.write_bytes(forms[how])
        with pytest.raises(CheckpointError) as caught:
            checkpoint.find(workdir)
        assert caught.value.where == str(path)
        path.write_bytes(data)
    path = biggest(workdir, 2)
    path.write_bytes(b"")
    at, notes = restored(workdir, state)
    assert at == 1 and path.name in notes[0]


def test_K3_swapped_files_and_files_of_another_step_are_found(tmp_path):
    workdir, state = saved(tmp_path / "a")
    other, _ = saved(tmp_path / "b", seed=1)
    good = {p: p.read_bytes() for p in files(workdir, 2)}
    for path, data in good.items():
        twins = [p for p in good if p != path and good[p] != data]
        twins += [
            p
            for p in (
                workdir / "checkpoints/1" / path.relative_to(workdir / "checkpoints/2"),
                other / path.relative_to(workdir),
            )
            if p.is_file() and p.read_bytes() != data
        ]
        for twin in twins[-3:]:
            path.write_bytes(twin.read_bytes())
            with pytest.raises(CheckpointError):
                checkpoint.find(workdir)
            path.write_bytes(data)
    shutil.rmtree(workdir / "checkpoints/2")
    shutil.copytree(workdir / "checkpoints/1", workdir / "checkpoints/2")
    assert restored(workdir, state)[0] == 1  # whole, but of another step


def test_K4_when_all_are_bad_nothing_starts_afresh(server, golden, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(golden, run)
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    for step in kept:
        flip(biggest(run, step))
    for _ in range(2):
        done = server.run(run, "--config.steps=10")
        assert done.code == 4
        for step in kept:
            assert f"step {step}: " in done.error()
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == kept


def test_K5_a_save_that_fails_is_told_and_the_next_is_made(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, Checkpoint())
    with monkeypatch.context() as patch:

        def broken(*_, **__):
            raise OSError(5, "Input/output error")

        patch.setattr(storage, "commit", broken)
        saver.save(1, {"w": jnp.ones(3)}, {})
        with pytest.raises(StorageError):
            saver.wait()
    assert saver.latest() is None
    saver.save(2, {"w": jnp.ones(3)}, {})
    saver.close()
    assert checkpoint.find(tmp_path).name == "2"


def test_K6_another_mesh_restores_the_same_bits(tmp_path):
    """Saved on 8 devices, restored on 4, 2 and 1, along either axis."""
    state = {"w": jnp.arange(96.0).reshape(8, 12), "b": jnp.arange(3, dtype=jnp.int32)}

    def placed(devices, axis):
        mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
        spec = PartitionSpec(*[None] * axis, "x") if devices > 1 else PartitionSpec()
        whole = NamedSharding(mesh, PartitionSpec())
        return {"w": NamedSharding(mesh, spec), "b": whole}

    saver = Checkpointer(tmp_path, Checkpoint())
    saver.save(1, jax.device_put(state, placed(8, 0)), {})
    for devices, axis in ((4, 0), (4, 1), (2, 1), (1, 0)):
        places = placed(devices, axis)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name])
            for name, x in state.items()
        }
        found, _ = saver.restore(abstract)
        for name, x in state.items():
            assert found[name].sharding == places[name]
            np.testing.assert_array_equal(found[name], x)
    saver.close()


@pytest.mark.slow
def test_K6_a_run_goes_on_on_another_mesh(tmp_path):
    """Trained on 8 devices as fsdp, restored on 4, 2 and 1 and otherwise sharded."""
    sizes = [{"fsdp": 8}, {"data": 2, "tensor": 2}, {"tensor": 2}, {}]
    meshes = [{"data": 1, **size} for size in sizes]
    first = tmp_path / "0"
    changes = {"steps": 2, "evals": {}, "checkpoint__every": 2}
    assert tiny.run(changes | {"mesh": meshes[0]}, first) == 0
    bits = tiny.state_bits(first)
    losses = []
    for number, mesh in enumerate(meshes[1:], start=1):
        workdir = tmp_path / str(number)
        shutil.copytree(first, workdir)
        again = changes | {"steps": 3, "mesh": mesh, "checkpoint__every": 2}
        assert tiny.run(again, workdir) == 0
        kept = tmp_path / f"kept-{number}"
        shutil.copytree(workdir, kept)
        shutil.rmtree(kept / "checkpoints/3")
        assert tiny.state_bits(kept) == bits
        losses.append(tiny.rows(workdir)[-1]["train/loss"])
    assert max(losses) - min(losses) < 1e-5


FROZEN = ["model.d_model", "seed", "batch_size", "optim.lr", "data.sources.0.items"]
FREE = ["steps", "checkpoint.every", "log.every", "stop.metric", "compute.remat"]


def test_K7_each_field_is_frozen_or_may_change():
    config = tiny.config()
    classes = {}
    for path, value in configs._leaves(config):
        tree = json.loads(configs.to_json(config))
        place = tree
        *parents, last = path.split(".")
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = [repr(value), "other"]
        found = configs.changes(configs.from_json(json.dumps(tree)), config)
        assert [change[0] for change in found] == [path]
        classes[path] = found[0][3]
    assert len(classes) > 60
    assert not any(classes[path] for path in FROZEN if path in classes)
    assert all(classes[path] for path in FREE)


@pytest.mark.parametrize(
    "changes",
    [{"model__d_model": 32}, {"seed": 4}, {"batch_size": 4}, {"optim__lr": 1e-3}],
    ids=str,
)
def test_K7_a_frozen_field_is_refused_by_name(golden, changes):
    path = next(iter(changes)).replace("__", ".")
    with pytest.raises(CheckpointError, match=path):
        tiny.run(changes, golden)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c": jnp.ones(2)}, "params/c: checkpoint nothing"),
        ({"a": None}, "params/a/kernel: checkpoint float32 (40, 30), run nothing"),
        ({"a": {"kernel": jnp.ones((30, 40))}}, "run float32 (30, 40)"),
        ({"a": {"kernel": jnp.ones((40, 30), jnp.int32)}}, "run int32 (40, 30)"),
        ({"a": {"kernel": jnp.ones((40, 30), jnp.bfloat16)}}, "run bfloat16"),
        ({"a": {"bias": jnp.ones((40, 30))}}, "params/a/bias: checkpoint nothing"),
    ],
    ids=["extra", "missing", "shape", "int", "half", "renamed"],
)
def test_K8_a_leaf_that_does_not_fit_is_named_with_both_forms(tmp_path, change, words):
    workdir, state = saved(tmp_path, steps=(1,))
    params = {k: v for k, v in (state["params"] | change).items() if v is not None}
    with pytest.raises(CheckpointError) as caught:
        restored(workdir, state | {"params": params})
    assert words in str(caught.value) and caught.value.exit_code == 4


def test_K9_weights_with_missing_and_unused_parameters_are_listed(tmp_path):
    workdir, state = saved(tmp_path, steps=(1,))
    wanted = {"a": state["params"]["a"], "head": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(CheckpointError, match="head/kernel: not there"):
        transfer.load_params(Init(source=str(workdir)), wanted)
    params, report = transfer.load_params(
        Init(source=str(workdir), missing=("head/.*",)), wanted
    )
    assert (report.fresh, report.unused) == (("head/kernel",), ("b/kernel",))
    assert report.loaded == ("a/kernel",)
    np.testing.assert_array_equal(params["a"]["kernel"], state["params"]["a"]["kernel"])


def test_K10_what_is_being_read_is_not_removed(tmp_path):
    saver = Checkpointer(tmp_path, Checkpoint(keep_last=1))
    state = {"w": jnp.ones(3)}
    saver.save(1, state, {})
    saver.wait()
    with checkpoint.reading(tmp_path) as directory:
        for step in (2, 3):
            saver.save(step, state, {})
        saver.wait()
        assert directory.name == "1" and saver.steps() == [1, 3]
        storage.verify(directory, step=1)
    saver.save(4, state, {})
    saver.close()
    assert saver.steps() == [4]  # nobody reads it any more; the newest is never removed


def test_K10_without_room_the_oldest_that_may_go_goes_first(tmp_path, monkeypatch):
    notes, state = [], {"w": jnp.ones(1000)}
    saver = Checkpointer(tmp_path, Checkpoint(keep_last=9, keep_every=2))
    saver.note = notes.append
    for step in (1, 2, 3, 4):
        saver.save(step, state, {})
    saver.wait()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    saver.save(5, state, {})
    saver.close()
    assert saver.steps() == [2, 4, 5] and len(notes) == 2


@pytest.mark.skipif(not FILES.exists(), reason="made by `make_format` below")
def test_K11_a_checkpoint_of_the_first_format_is_read(tmp_path):
    shutil.copytree(FILES, tmp_path / "checkpoints" / "7")
    state = {"w": jnp.zeros((2, 3)), "step": jnp.int32(0)}
    found, host = checkpoint.read(checkpoint.find(tmp_path), state)
    np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3))
    assert int(found["step"]) == 7 and host == {"data": {"seed": 3}, "skipped": []}
    adopt.check_data(host["data"], {"seed": 3})


def make_format(workdir, place=FILES):
    """How `format-1` was made, by the version that first wrote this format."""
    saver = Checkpointer(workdir, Checkpoint())
    state = {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7)}
    saver.save(7, state, {"data": {"seed": 3}, "skipped": []})
    saver.close()
    shutil.move(workdir / "checkpoints" / "7", place)
