import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.errors import CheckpointError, StorageError
from lm.host import storage


def run(source, *args, **env):
    """Runs the source in a fresh process, which imports nothing heavy."""
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, args)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def committed(tmp_path, name="7"):
    partial = tmp_path / f"{name}.partial"
    (partial / "state").mkdir(parents=True)
    (partial / "state" / "array").write_bytes(bytes(range(200)))
    (partial / "state" / "other").write_bytes(bytes(reversed(range(200))))
    (partial / "empty").write_bytes(b"")
    storage.commit(partial, tmp_path / name, step=7, run="a")
    return tmp_path / name


def test_commit_renames_and_verify_gives_the_facts(tmp_path):
    directory = committed(tmp_path)
    assert not (tmp_path / "7.partial").exists()
    assert storage.verify(directory, step=7) == {"step": 7, "run": "a"}
    content = json.loads((directory / storage.MANIFEST).read_text())
    assert set(content["files"]) == {"state/array", "state/other", "empty"}


def test_files_that_are_not_listed_are_no_damage(tmp_path):
    directory = committed(tmp_path)
    (directory / ".DS_Store").write_bytes(b"x")
    storage.verify(directory)


@pytest.mark.parametrize("name", ["state/array", storage.MANIFEST])
def test_each_flipped_bit_is_found_and_its_file_named(tmp_path, name):
    directory = committed(tmp_path)
    path = directory / name
    good = path.read_bytes()
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            storage.verify(directory)
        assert caught.value.where == str(path)
    path.write_bytes(good)
    storage.verify(directory)


@pytest.mark.parametrize("name", ["state/array", "state/other", storage.MANIFEST])
@pytest.mark.parametrize("how", ["cut", "emptied", "zeroed", "deleted", "grown"])
def test_each_damaged_file_is_named(tmp_path, name, how):
    directory = committed(tmp_path)
    path = directory / name
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    else:
        forms = {
            "cut": data[:-1],
            "emptied": b"",
            "zeroed": bytes(len(data)),
            "grown": data + b"\n",
        }
        path.write_bytes(forms[how])
    with pytest.raises(CheckpointError) as caught:
        storage.verify(directory)
    assert caught.value.where == str(path)
    if how == "cut" and name != storage.MANIFEST:
        assert "found 199 bytes, expected 200 bytes" in str(caught.value)


def test_swapped_files_are_found(tmp_path):
    directory = committed(tmp_path) / "state"
    (directory / "array").rename(directory / "x")
    (directory / "other").rename(directory / "array")
    (directory / "x").rename(directory / "other")
    with pytest.raises(CheckpointError, match="array"):
        storage.verify(directory.parent)


def test_a_step_under_the_name_of_another_is_found(tmp_path):
    committed(tmp_path).rename(tmp_path / "8")
    with pytest.raises(CheckpointError, match="step 7, expected step 8"):
        storage.verify(tmp_path / "8", step=8)


def test_commit_refuses_a_place_that_is_taken(tmp_path):
    committed(tmp_path)
    with pytest.raises(StorageError, match="not empty"):
        committed(tmp_path)
    storage.verify(tmp_path / "7")


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "config.json"
    storage.write_json(path, {"b": 0.1, "a": [1, None]})
    storage.write_text(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["config.json"]


def test_json_refuses_what_is_no_json(tmp_path):
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "x", {"a": float("nan")})
    assert not (tmp_path / "x").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (
        lambda: storage.write_text(tmp_path / "file" / "x", "text"),
        lambda: storage.Appender(tmp_path / "file" / "x"),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.where == str(tmp_path / "file" / "x")
        assert caught.value.exit_code == 5


def test_a_workdir_is_checked_and_not_made(tmp_path):
    storage.check_directory(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=r"not a directory|too long") as caught:
            storage.check_directory(bad)
        assert caught.value.where == str(bad)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_is_read_only_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not writable"):
        storage.check_directory(tmp_path / "a")


FULL = """
import resource, sys
from lm.host import storage
from lm.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    storage.write_bytes(sys.argv[1], bytes(5000))
except StorageError as error:
    print(error.line())
"""


def test_a_full_disk_says_what_is_needed_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    line = run(FULL, path).stdout
    assert line.startswith(f"error[storage] {path}: found ")
    assert "need 5,000 bytes, free" in line
    assert path.read_text() == "old"


def test_tensorstore_texts_become_refusals(tmp_path):
    with (
        pytest.raises(StorageError, match=r"no space left.*need 9 bytes"),
        storage.refusing(tmp_path, 9),
    ):
        raise ValueError("Failed to write: No space [os_error_code='28']")
    with pytest.raises(ValueError), storage.refusing(tmp_path):
        raise ValueError("another matter")


def test_append_adds_whole_lines_at_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ("one\n", "two\n"):
        rows = storage.Appender(path)
        rows.write(text)
        assert path.read_text().endswith(text)  # seen before it is synced
        rows.sync()
        rows.close()
    assert path.read_text() == "one\ntwo\n"


def test_remove_tree_may_be_interrupted_and_done_again(tmp_path):
    directory = committed(tmp_path)
    directory.rename(tmp_path / "7.removed")
    storage.remove_tree(tmp_path / "7.removed")
    storage.remove_tree(committed(tmp_path))
    assert os.listdir(tmp_path) == []


WRITES = """
import sys
from pathlib import Path
from lm.host import storage
place = Path(sys.argv[1])
for k in (1, 2):
    (place / f"{k}.partial").mkdir()
    (place / f"{k}.partial" / "data").write_text(str(k))
    storage.commit(place / f"{k}.partial", place / str(k), step=k)
    storage.write_text(place / "pointer", str(k))
rows = storage.Appender(place / "rows")
rows.write("a")
rows.sync()
storage.remove_tree(place / "1")
"""
POINTS = [
    "write-unsynced:2",
    "write-unnamed:2",
    "write-renamed:2",
    "commit-start:2",
    "commit-hashed:2",
    "commit-manifest:2",
    "commit-synced:2",
    "commit-renamed:2",
    "commit-done:2",
    "append-start:1",
    "append-done:1",
    "append-synced:1",
    "remove-renamed:1",
    "remove-done:1",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_anywhere_leaves_whole_things_only(tmp_path, point):
    assert run(WRITES, tmp_path, LM_CRASHPOINT=point).returncode == -9
    steps = [p for p in tmp_path.iterdir() if p.name.isdecimal()]
    assert steps
    assert not (point.startswith("remove") and (tmp_path / "1").exists())
    for directory in steps:
        storage.verify(directory, step=int(directory.name))
    if (tmp_path / "pointer").exists():
        assert (tmp_path / "pointer").read_text() in ("1", "2")


def test_every_crash_point_is_tried():
    source = Path(storage.__file__).read_text()
    assert {p.partition(":")[0] for p in POINTS} == {
        part.partition('"')[0] for part in source.split('crash_point("')[1:]
    }
