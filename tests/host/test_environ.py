"""Variables of the environment: absurd values are refused by name, in a line."""

import pytest

from lm.errors import ConfigError
from lm.host import environ, process, watch

NUMBERS = ("LM_PEER_TIMEOUT", "LM_PHASE_LIMIT", "LM_PEER_LIMIT")
ABSURD = ("0", "-1", "5s", "1e9", "nan", "9" * 5000, "²", "٣", "1_000", "99999999999")


@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none_or_too_large(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: found .*a whole number from 1 to"):
        environ.whole(name, 300)
    if name != "LM_PEER_TIMEOUT":
        with pytest.raises(ConfigError, match=name):
            watch.Watch(tmp_path)


def test_a_number_that_is_one_and_its_default(monkeypatch):
    assert environ.whole("LM_PEER_TIMEOUT", 300, environ={}) == 300
    assert environ.whole("A", 300, environ={"A": ""}) == 300
    assert environ.whole("A", 300, environ={"A": " 60 "}) == 60
    with pytest.raises(ConfigError, match="A: found nothing"):
        environ.whole("A", environ={})


PLACE = {"LM_COORDINATOR": "localhost:12345", "LM_PROCESSES": "2", "LM_PROCESS": "0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LM_COORDINATOR", "localhost:99999999"),
        ("LM_COORDINATOR", "localhost:0"),
        ("LM_COORDINATOR", "localhost:²"),
        ("LM_PROCESSES", "9" * 40),
        ("LM_PROCESSES", "0"),
        ("LM_PROCESS", "-1"),
        ("LM_PROCESS", "2"),
        ("SLURM_STEP_NUM_TASKS", "many"),
    ],
)
def test_a_cluster_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=name):
        process._cluster({**PLACE, name: value})


@pytest.mark.parametrize(
    "place", ["~nobody-of-this-name/cache", "x" * 5000, "/dev/null"]
)
def test_a_place_for_compiled_programs_that_cannot_be(place):
    from lm.errors import StorageError

    with pytest.raises(StorageError, match="LM_COMPILE_CACHE"):
        process._compile_cache({"LM_COMPILE_CACHE": place})
