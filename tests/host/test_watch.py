"""Limits of phases, signs of life of other processes, the stacks that are left."""

import threading
import time

import pytest

from lm.errors import PeerError
from lm.host import watch
from lm.host.watch import Peers, Watch


class Service:
    """What jax's client offers, for processes that are threads; may stand still."""

    def __init__(self):
        self.values, self.still = {}, threading.Event()

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite and not self.still.wait(0)
        self.values[key] = value

    def key_value_dir_get(self, folder):
        assert not self.still.wait(0)
        return [pair for pair in self.values.items() if pair[0].startswith(folder)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watch, "TICK", 0.02)


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_phase_over_its_limit_leaves_the_stacks_and_ends_with_8(tmp_path, capfd):
    codes = []
    with Watch(tmp_path, phase_limit=0.3, end=codes.append) as watching:
        watching.at("evaluation dev", times=1e6)
        time.sleep(0.5)
        assert codes == []
        watching.at("step 7")
        until(lambda: codes)
    assert set(codes) == {8}
    line = capfd.readouterr().err.strip().splitlines()[0]
    assert line.startswith("error[peer] step 7: found no end within the limit")
    assert "stacks.txt" in line
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "test_a_phase_over_its_limit" in stacks and "Thread" in stacks


def test_phases_that_end_in_time_end_nothing(tmp_path):
    codes = []
    with Watch(tmp_path, phase_limit=0.3, end=codes.append) as watching:
        for step in range(10):
            watching.at(f"step {step}")
            time.sleep(0.1)
    assert codes == [] and not (tmp_path / "stacks.txt").exists()


def pair(limit=1.0):
    service = Service()
    made = [Peers(service, p, 2, limit, lambda p=p: f"step {p + 5}") for p in (0, 1)]
    for one in made:
        one.start()
    until(lambda: all("phase" in json_of(one) for one in made))
    return service, *made


def json_of(peers):
    return next(iter(peers._signs.values()))[0]


def test_a_process_without_signs_is_lost_and_named_with_its_phase():
    _, first, second = pair()
    assert first.lost() is None and second.lost() is None
    second._done.set()  # as if killed: it says nothing more
    until(lambda: first.lost())
    assert first.lost().startswith("process 1 (")
    assert first.lost().endswith("lost at step 6")
    assert "at step 6" in first.doing()
    first.stop(None)


def test_a_process_that_fails_says_why_and_one_that_is_done_is_not_missed():
    _, first, second = pair()
    second.stop(ValueError("no such thing"))
    until(lambda: first.lost())
    assert "which ended (ValueError: no such thing)" in first.lost()
    first.stop(None)
    _, first, second = pair(limit=0.5)
    second.stop(None)
    time.sleep(1.0)
    assert first.lost() is None
    first.stop(None)


def test_without_its_service_process_0_is_lost():
    service, first, second = pair(limit=0.5)
    service.still.set()
    until(lambda: second.lost())
    assert second.lost().startswith("process 0")
    first._done.set()
    second._done.set()


def test_an_error_that_comes_of_a_lost_process_names_it(tmp_path):
    service = Service()
    with (
        pytest.raises(PeerError, match="process 1"),
        Watch(tmp_path, client=service, processes=2, peer_limit=0.3, end=list),
    ):
        raise ValueError("connection closed by peer")


def test_an_error_of_ones_own_stays_what_it_is(tmp_path):
    service = Service()
    other = Peers(service, 1, 2, 0.4, lambda: "step 1")
    other.start()
    with (
        pytest.raises(ValueError, match="mine"),
        Watch(tmp_path, client=service, processes=2, peer_limit=0.4, end=list),
    ):
        raise ValueError("mine")
    assert "mine" in service.values["lm/signs/0"]
    other.stop(None)
