"""Tests names of the hub: which files are fetched, and the errors without a network."""

import fnmatch
import shutil
from pathlib import Path

import pytest

from lm.errors import CheckpointError
from lm.hf import checkpoint, hub
from tests.hf import goldens


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Replaces the network by a hub with one model; gives the list of its requests."""
    import huggingface_hub

    files = ("config.json", "model.safetensors", "pytorch_model.bin", "modeling.py")
    model, asked = tmp_path / "model", []
    model.mkdir()
    for name in files:
        (model / name).write_bytes(b"x")
    for name in files[:2]:
        shutil.copy(goldens.PLACE / "gpt2" / name, model / name)

    def snapshot(name, *, revision, allow_patterns, ignore_patterns, etag_timeout):
        asked.append((name, revision))
        if name != "org/model":
            raise huggingface_hub.errors.RepositoryNotFoundError(
                "404 Client Error.\n\nRepository Not Found", response=FakeResponse()
            )
        assert ignore_patterns == "*/*" and etag_timeout == hub.SECONDS
        place = tmp_path / "cache" / "snapshots" / "0123"
        place.mkdir(parents=True, exist_ok=True)
        for file in model.iterdir():
            if any(fnmatch.fnmatch(file.name, p) for p in allow_patterns):
                blob = tmp_path / "cache" / "blobs" / file.name  # as in the hub's cache
                blob.parent.mkdir(exist_ok=True)
                shutil.copy(file, blob)
                (place / file.name).unlink(missing_ok=True)
                (place / file.name).symlink_to(blob)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    hub.fetch.cache_clear()
    yield model, asked
    hub.fetch.cache_clear()


class FakeResponse:
    headers, request, status_code, url = {}, None, 404, ""


def test_a_name_is_fetched_once_and_without_code(shelf):
    place = checkpoint.directory_of("hf:org/model@v1")
    assert {file.name for file in place.iterdir()} == {
        *("config.json", "model.safetensors")
    }
    assert checkpoint.open_checkpoint(place).family.model_type == "gpt2"
    asked = shelf[1]
    assert set(asked) == {("org/model", "v1")} and len(asked) == 2
    assert checkpoint.directory_of("hf:org/model@v1") == place
    assert len(asked) == 2


def test_flax_weights_are_fetched_where_there_are_no_safetensors(shelf):
    model, _ = shelf
    (model / "model.safetensors").unlink()
    (model / "flax_model.msgpack").write_bytes(b"x")
    place = checkpoint.directory_of("hf:org/model")
    assert (place / "flax_model.msgpack").exists()


def test_a_folder_comes_before_a_name(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert checkpoint.directory_of("hf:org/model") == Path("org/model")
    assert not shelf[1]


def test_what_the_hub_does_not_have_is_refused_in_a_line(shelf):
    with pytest.raises(CheckpointError) as refused:
        checkpoint.directory_of("hf:org/modle")
    line = refused.value.line()
    assert "hf:org/modle: found no such folder here, and from the hub" in line
    assert "Repository Not Found" in line and "hf download org/modle" in line
    assert len(line.splitlines()) == 1


def test_without_a_network_the_error_names_it(monkeypatch, tmp_path):
    """Asks the library itself, offline by its own setting."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.fetch.cache_clear()
    with pytest.raises(CheckpointError, match=r"no such folder here, and from the hub"):
        checkpoint.directory_of("hf:gpt2-of-nobody")


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("gpt2", True),
        ("org/model", True),
        ("org/model@refs/pr/1", True),
        ("/abs/model", False),
        ("../model", False),
        ("a/b/c", False),
        ("~/model", False),
        (".hidden/x", False),
        ("org/", False),
        ("", False),
    ],
)
def test_the_form_of_names(name, fits):
    assert hub.is_name(name) is fits
