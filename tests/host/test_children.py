"""Processes that are started: how they end, and that none outlives its starter."""

import os
import signal
import sys
import time

from lm.host.children import Children, last_line

WAITS = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, lambda *_: None); " + WAITS


def run(children, script, output, key="one"):
    children.start(key, [sys.executable, "-c", script], output)


def finish(children, seconds=30):
    found, deadline = {}, time.monotonic() + seconds
    while children.running:
        assert time.monotonic() < deadline
        found |= {ended.key: ended for ended in children.ended()}
    return found


def until(output, text, seconds=30):
    deadline = time.monotonic() + seconds
    while not output.exists() or text not in output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_ends_with_its_own_code_and_its_last_words(tmp_path):
    with Children() as children:
        run(children, "print('a'); print('fine\\x1b[1m\\n')", tmp_path / "a", "a")
        text = "import sys; print('error[data] x', flush=True); sys.exit('after')"
        run(children, text, tmp_path / "sub" / "b", "b")
        run(children, "import os; os.kill(os.getpid(), 9)", tmp_path / "c", "c")
        assert children.running == ("a", "b", "c") and children.seconds("a") >= 0
        found = finish(children)
    assert [found[key].code for key in "abc"] == [0, 1, -9]
    assert found["a"].said == "fine\\x1b[1m"  # a terminal would act on it
    assert found["b"].said == "error[data] x" and found["c"].said == ""
    assert children.signal is None
    with Children() as children:  # what an earlier process said is not its own
        run(children, "pass", tmp_path / "sub" / "b")
        assert finish(children)["one"].said == ""
    assert last_line(tmp_path / "sub" / "b") == "error[data] x"


def test_a_signal_is_passed_on_once_and_the_next_one_kills(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Children() as children:
        run(children, WAITS, tmp_path / "a", "gives in")
        run(children, STUBBORN, tmp_path / "b", "does not")
        for name in "ab":
            until(tmp_path / name, "ready")
        os.kill(os.getpid(), signal.SIGTERM)
        while "gives in" in children.running:
            [*children.ended()]
        assert children.signal == signal.SIGTERM
        assert children.running == ("does not",)
        os.kill(os.getpid(), signal.SIGINT)
        assert finish(children)["does not"].code == -signal.SIGKILL
        assert children.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failure_here_ends_them(tmp_path):
    try:
        with Children() as children:
            run(children, WAITS, tmp_path / "a")
            until(tmp_path / "a", "ready")
            pid = children._running["one"].process.pid
            raise OSError("the disk is full")
    except OSError as error:
        assert "full" in str(error)
    assert not children.running
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    raise AssertionError("still there")
