"""A run is itself wherever its folder goes; checkpoints of another are not its own."""

import json
import shutil

import jax.numpy as jnp
import pytest

from lm.config.resolve import Config
from lm.errors import CheckpointError, StorageError
from lm.host import storage
from lm.workdir import checkpoint as ckpt
from lm.workdir import identity, rows
from lm.workdir.checkpoint import Checkpoint, Checkpointer
from tests import tiny

STATE = {"step": jnp.int32(0), "w": jnp.ones((2, 3))}
KEEP = Checkpoint(keep_last=9)


def save(workdir, *steps, **options):
    with Checkpointer(workdir, KEEP, **options) as saver:
        for step in steps:
            saver.save(step, STATE, {"n": step})
        saver.close()


def restore(workdir, **options):
    notes = []
    with Checkpointer(workdir, KEEP, note=notes.append, **options) as saver:
        _, host = saver.restore(STATE)
        saver.close()
    return host["n"], notes


def test_a_checkpoint_of_another_run_is_put_aside_and_named(tmp_path):
    """Same shapes, same folder names: only the identity tells them apart."""
    for name in ("mine", "theirs"):
        save(tmp_path / name / "run", 4, 8)
    mine = tmp_path / "mine" / "run"
    shutil.rmtree(mine / "checkpoints" / "8")
    shutil.copytree(tmp_path / "theirs/run/checkpoints/8", mine / "checkpoints/8")
    with pytest.raises(
        CheckpointError, match=r"8/MANIFEST\.json: found a checkpoint of"
    ):
        ckpt.find(mine)
    with pytest.raises(CheckpointError, match="a checkpoint of run"):
        restore(mine, strict=True)
    step, notes = restore(mine)
    assert step == 4 and "checkpoint 8 is damaged" in notes[0]
    assert ckpt.find(mine).name == "4"


def test_the_best_step_is_none_of_a_stranger(tmp_path):
    best = Checkpoint(keep_last=9, best="held/loss")
    for name, value in (("mine", 2.0), ("theirs", 1.0)):
        saver = Checkpointer(tmp_path / name, best)
        saver.save(4 if name == "mine" else 8, STATE, {}, value=value)
        saver.close()
    shutil.copytree(tmp_path / "theirs/checkpoints/8", tmp_path / "mine/checkpoints/8")
    Checkpointer(tmp_path / "mine", best).close()
    assert ckpt.find(tmp_path / "mine", "best").name == "4"


@pytest.mark.parametrize("how", ["renamed", "linked", "copied"])
def test_a_workdir_that_is_elsewhere_is_the_same_run(tmp_path, how):
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    save(old, 4)
    new.parent.mkdir()
    if how == "renamed":
        old.rename(new)
    elif how == "linked":
        new.symlink_to(old)
    else:
        shutil.copytree(old, new)
    before = identity.read(new)
    save(new, 8)
    assert restore(new) == (8, []) and identity.read(new) == before


def test_a_run_of_before_goes_on_with_an_identity(tmp_path):
    """Its manifests have the name of the folder, under which it may no longer be."""
    save(tmp_path, 4)
    (tmp_path / identity.FILE).unlink()
    place = tmp_path / "checkpoints" / "4"
    facts = storage.read_manifest(place)
    facts.pop("rows")
    facts["run"] = "an_old_name"
    (place / storage.MANIFEST).write_text(storage._manifest_text(facts))
    assert restore(tmp_path) == (4, [])
    save(tmp_path, 8)
    assert restore(tmp_path) == (8, [])
    runs = {storage.read_manifest(p)["run"] for p in place.parent.iterdir()}
    made = identity.read(tmp_path)
    assert runs == {"an_old_name", made.run} and made.before == ("an_old_name",)


def test_a_lost_identity_is_found_in_the_manifests(tmp_path):
    save(tmp_path / "a", 4)
    save(tmp_path / "b", 8)
    made = identity.read(tmp_path / "a")
    (tmp_path / "a" / identity.FILE).unlink()
    assert restore(tmp_path / "a") == (4, [])
    assert identity.read(tmp_path / "a") == made
    (tmp_path / "a" / identity.FILE).unlink()
    shutil.copytree(tmp_path / "b/checkpoints/8", tmp_path / "a/checkpoints/8")
    with pytest.raises(CheckpointError, match=r"of the runs .*, and no run\.json"):
        restore(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"run": 3, "before": []}', "\xff", "[" * 999]
)
def test_an_identity_of_another_shape_is_a_refusal(tmp_path, text):
    save(tmp_path, 4)
    (tmp_path / identity.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError, match=r"run\.json"):
        restore(tmp_path)


# ── What is frozen, in the checkpoint itself ────────────────────────────────────────


def test_a_frozen_field_is_held_against_the_checkpoint(tmp_path):
    """config.json is not asked: it may be gone, or be another's."""
    config = tiny.config()
    other = tiny.config(optim__lr=0.5)
    save(tmp_path, 4, config=config)
    assert restore(tmp_path, config=config)[0] == 4
    assert restore(tmp_path, config=tiny.config(steps=99))[0] == 4
    with pytest.raises(CheckpointError, match=r"optim\.lr: found 0\.5.*expected 0\.01"):
        restore(tmp_path, config=other)
    assert restore(tmp_path, config=other, allow_change=("optim.lr",))[0] == 4
    save(tmp_path, 8, config=other, allow_change=("optim.lr",))
    assert restore(tmp_path, config=other)[0] == 8


def test_a_checkpoint_without_a_config_is_compared_with_none(tmp_path):
    save(tmp_path, 4)
    assert restore(tmp_path, config=Config(tiny.config()))[0] == 4


# ── Rows of metrics ─────────────────────────────────────────────────────────────────


def lines(*steps):
    return [json.dumps({"step": n, "train/loss": n / 8}) + "\n" for n in steps]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows, None),
        (lambda rows: [*rows, *lines(9), '{"st'], None),  # cut when the run goes on
        (lambda rows: rows[:3] + rows[4:], "step 5 follows step 3"),
        (lambda rows: rows[:3] + rows[2:], "step 3 follows step 3"),
        (lambda rows: [*rows[:3], "[]\n", *rows[4:]], "a line after step 3 is no row"),
        (lambda rows: [*rows[:3], rows[3].replace("0.5", "0.4"), *rows[4:]], "altered"),
        (lambda rows: rows[:6], "the last are missing"),
        (lambda rows: [*rows[:3], "[" * 9999 + "\n", *rows[4:]], "no row"),
        (lambda rows: [*rows[:3], '{"step": "4"}\n', *rows[4:]], "no row"),
    ],
)
def test_rows_that_are_not_those_written_are_noticed(tmp_path, change, found):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(lines(1, 2, 3, 4)))
    with Checkpointer(tmp_path, KEEP) as saver:
        saver.save(4, STATE, {"n": 4})
        file.write_text("".join(lines(*range(1, 9))))
        saver.save(8, STATE, {"n": 8})
        saver.close()
    file.write_text("".join(change(lines(*range(1, 9)))))
    _, notes = restore(tmp_path)
    if found is None:
        assert not notes
    else:
        assert len(notes) == 1 and found in notes[0] and "metrics.jsonl" in notes[0]


def test_the_hash_grows_with_the_file_and_begins_again_when_it_is_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    digest = rows.Digest(file)
    assert digest.facts() is None
    for text in ("".join(lines(1, 2, 3)), "".join(lines(1, 2, 3, 4)), lines(1)[0]):
        file.write_text(text)
        assert digest.facts() == rows.Digest(file).facts()
        assert digest.facts()["bytes"] == len(text)
