"""The lock of a workdir: who may enter, who is dead, who is faster."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm.errors import WorkdirError
from lm.host import lock
from lm.host.lock import Lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from lm.host.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def owner(path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def foreign(path, **facts):
    """A lock whose owner is on another machine."""
    facts = {"pid": 1, "born": "1", "host": "far", "machine": "other", **facts}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts))


def test_one_holds_and_the_next_is_refused_with_its_name(path, owner):
    began = time.monotonic()
    with pytest.raises(WorkdirError) as caught, Lock(path):
        pass
    assert time.monotonic() - began < 1
    assert caught.value.exit_code == 7
    assert f"process {owner.pid}@" in str(caught.value)
    assert f"since {time.strftime('%Y-')}" in str(caught.value)


def test_a_killed_owner_is_replaced_at_once(path, owner):
    owner.kill()  # and not waited for: a process that nobody collects is dead as well
    notes, began = [], time.monotonic()
    while not lock._is_dead(json.loads(path.read_text())):
        assert time.monotonic() - began < 5
    with Lock(path, note=notes.append):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(notes) == 1 and f"{owner.pid}@" in notes[0]
    assert not path.exists()


def test_a_process_of_the_same_number_is_not_the_owner(path):
    foreign(path, pid=os.getpid(), born="123", machine=lock._machine())
    with Lock(path):
        pass


def test_it_is_free_after_a_failure(path):
    with pytest.raises(ValueError), Lock(path):
        raise ValueError
    with Lock(path):
        pass


def test_an_owner_elsewhere_lives_while_its_file_changes(path):
    foreign(path)
    done = threading.Event()

    def beat():
        while not done.wait(0.2):
            os.utime(path, (1, time.monotonic()))  # a clock that is far behind

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(WorkdirError, match="1@far"), Lock(path, limit=2):
        pass
    done.set()
    thread.join()


@pytest.mark.parametrize("text", [None, "", '{"pid": 12', "[1]"])
def test_an_owner_elsewhere_without_a_sign_is_dead_after_the_limit(path, text):
    foreign(path)
    if text is not None:
        path.write_text(text)
    began = time.monotonic()
    with Lock(path, limit=0.5):
        assert time.monotonic() - began >= 0.5


def test_waiting_for_an_owner_that_ends(path, owner):
    threading.Timer(0.5, owner.kill).start()
    with Lock(path, wait=20):
        assert owner.wait(5) != 0


def test_of_many_that_find_a_dead_owner_one_wins_at_a_time(path):
    foreign(path, pid=2**22 + 1, machine=lock._machine())
    inside, most, entered = [], [], []

    def enter():
        with Lock(path, wait=30):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            entered.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 8 and max(most) == 1


def test_an_owner_that_lost_its_lock_ends_with_7(path):
    body = HOLD.replace("Lock(Path(sys.argv[1]))", "Lock(Path(sys.argv[1]), beat=0.1)")
    process = subprocess.Popen(
        [sys.executable, "-c", body, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    path.unlink()
    foreign(path)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 7
    assert error.startswith("error[workdir] ") and "1@far" in error
