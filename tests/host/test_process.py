"""Exit codes, signals, the compilation cache, several processes on this machine."""

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lm import errors
from lm.host.process import Preemption, _cluster, _compile_cache, run_main

ROOT = Path(__file__).resolve().parents[2]


def start(body: str, **environ: str) -> subprocess.Popen:
    """A Python process that runs `body`; ends within the test, see `finish`."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "LM_COMPILE_CACHE": "off",
            **environ,
        },
    )


def finish(process: subprocess.Popen, seconds: float = 90) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def raising(error: BaseException):
    def run():
        raise error

    return run


@pytest.mark.parametrize("kind", errors.Refusal.__subclasses__())
def test_a_refusal_is_one_line_and_its_exit_code(kind, capsys):
    refusal = kind("a.b", "1\n2", "3", "do that")
    assert run_main(raising(refusal)) == kind.exit_code != 1
    shown = capsys.readouterr()
    expected = f"error[{kind.kind}] a.b: found 1 2, expected 3. Fix: do that\n"
    assert (shown.out, shown.err) == ("", expected)


def test_debug_shows_the_traceback_of_a_refusal(capsys):
    refusal = errors.DataError("f:1", "a", "b")
    assert run_main(raising(refusal), debug=True) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_1_with_a_traceback(capsys):
    assert run_main(raising(ValueError("what?"))) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "error[bug] ValueError" in shown


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (75, 75)])
def test_the_commands_own_code(result, code):
    assert run_main(lambda: result) == code


def test_memory_that_ran_out_is_5(capsys):
    assert run_main(raising(MemoryError())) == 5
    assert run_main(lambda: jnp.ones(2**45).block_until_ready()) == 5
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error[storage] memory:") for line in lines)
    assert len(lines) == 2 and "batch_size" in lines[0]


def test_another_runtime_error_of_jax_is_not_called_memory(capsys):
    assert run_main(raising(jax.errors.JaxRuntimeError("INTERNAL: x"))) == 1
    assert run_main(raising(RuntimeError("RESOURCE_EXHAUSTED"))) == 1


def test_the_handlers_are_given_back():
    numbers = (signal.SIGTERM, signal.SIGURG)
    before = [signal.getsignal(number) for number in numbers]
    assert run_main(lambda: signal.getsignal(signal.SIGTERM) is before[0]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 10
    while "signals" in (names := [each.name for each in threading.enumerate()]):
        assert time.monotonic() < deadline, names
        time.sleep(0.01)


IDLE = """
    import signal, sys, time
    # A shell that runs the tests in the background has had Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from lm.host.process import run_main
    def run():
        print("ready")
        time.sleep(60)
    sys.exit(run_main(run))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_before_the_loop_ends_the_command(number, code):
    process = start(IDLE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    returned, _, err = finish(process, 20)
    assert (returned, err.count("\n")) == (code, 1)
    assert "the same command again" in err


# The system may give a signal to any thread; then nothing wakes the main one.
ELSEWHERE = """
    import os, signal, sys, threading, time
    from lm.host.process import Preemption, run_main
    other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    def signal_it():
        time.sleep(0.3)
        signal.pthread_kill(other.ident, signal.SIGTERM)
    def sleep():
        other.start()
        threading.Thread(target=signal_it, daemon=True).start()
        time.sleep(60)
    def run():
        if os.environ["WHERE"] == "before":
            sleep()
        with Preemption() as preemption:
            preemption.wait(sleep)
            assert preemption.requested(1)
            return preemption.exit_code
    sys.exit(run_main(run))
"""


@pytest.mark.parametrize("where", ["before", "loop"])
def test_a_signal_that_another_thread_gets_breaks_a_wait_off(where):
    began = time.monotonic()
    returned, _, err = finish(start(ELSEWHERE, WHERE=where), 20)
    assert returned == 75 and time.monotonic() - began < 10, err


# A loop of steps of 0.1 s whose save takes 0.5 s in two halves.
LOOP = """
    import sys, time
    from lm.host.process import Preemption, run_main
    def run():
        with Preemption() as preemption:
            for step in range(1, 200):
                print("step", step)
                time.sleep(0.1)
                if preemption.requested(step):
                    print("save", step)
                    time.sleep(0.5)
                    print("saved", step)
                    return preemption.exit_code
    sys.exit(run_main(run))
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 75),
        pytest.param([signal.SIGINT] * 3, 130, marks=pytest.mark.slow),
    ],
)
def test_signals_while_saving_do_not_tear_the_save(signals, code):
    process = start(LOOP)
    while process.stdout.readline() != "step 3\n":
        pass
    for number in signals[:1]:
        process.send_signal(number)
    while (line := process.stdout.readline()).startswith("step"):
        pass
    for number in signals[1:]:
        time.sleep(0.05)
        process.send_signal(number)
    returned, out, err = finish(process, 20)
    step = line.split()[1]
    assert (returned, line, out) == (code, f"save {step}\n", f"saved {step}\n")
    assert err.strip() == "stopping: this step ends and is saved first"


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 75),
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_a_signal_is_a_question_in_the_loop_and_an_end_outside(signals, code, capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert not preemption.requested(1)
        for number in signals:
            os.kill(os.getpid(), number)
        assert preemption.requested(2) and preemption.requested(3)
        assert preemption.exit_code == code
    assert capfd.readouterr().err.count("stopping") == 1
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def restored_cache():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_is_private_by_default(tmp_path, restored_cache):
    assert _compile_cache({"HOME": str(tmp_path)}) == []
    place = tmp_path / ".cache" / "lm" / "jax"
    assert place.stat().st_mode & 0o777 == 0o700
    assert Path(jax.config.jax_compilation_cache_dir).parent == place
    assert _compile_cache({"HOME": str(tmp_path)}) == []


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    body = """
        from lm.host.process import platform_setup
        print(platform_setup())
        import jax, jax.numpy as jnp
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
    """
    place = tmp_path / "home" / ".cache" / "lm" / "jax"
    environ = {"HOME": str(tmp_path / "home"), "LM_COMPILE_CACHE": ""}
    returned, out, err = finish(start(body, **environ))
    assert returned == 0 and "devices: 1 x cpu, processes: 1" in out, err
    assert place.stat().st_mode & 0o777 == 0o700
    entries = list(place.rglob("*-cache"))
    assert entries
    before = {each: each.stat().st_mtime_ns for each in entries}
    assert finish(start(body, **environ))[0] == 0
    assert {e: e.stat().st_mtime_ns for e in place.rglob("*-cache")} == before


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_cache_that_is_open_to_others_is_not_used(tmp_path, mode, restored_cache):
    before = jax.config.jax_compilation_cache_dir
    place = tmp_path / "lm" / "jax"
    place.mkdir(parents=True)
    place.chmod(mode)
    with pytest.raises(errors.StorageError, match="chmod 700"):
        _compile_cache({"LM_COMPILE_CACHE": str(place)})
    notes = _compile_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert f"mode {mode:o}" in notes[0]
    assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch, restored_cache):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(errors.StorageError, match="user 12345"):
        _compile_cache({"LM_COMPILE_CACHE": str(tmp_path / "new")})


def test_a_home_without_room_for_a_cache_is_told_and_stops_nothing(tmp_path):
    (tmp_path / "lm").write_text("a file where the folder should be")
    notes = _compile_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert "no compilation cache" in notes[0]


def test_off_and_the_variable_of_jax_leave_jax_alone(restored_cache):
    before = jax.config.jax_compilation_cache_dir
    assert _compile_cache({"LM_COMPILE_CACHE": "off"}) == []
    assert _compile_cache({"JAX_COMPILATION_CACHE_DIR": "/nowhere"}) == []
    assert jax.config.jax_compilation_cache_dir == before


def test_when_a_process_is_one_of_several():
    assert _cluster({}) is None
    assert _cluster({"LM_COORDINATOR": "auto"}) == {}
    assert _cluster({"SLURM_STEP_NUM_TASKS": "4"}) == {}
    assert _cluster({"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert _cluster({"SLURM_STEP_NUM_TASKS": "4", "LM_COORDINATOR": "off"}) is None
    assert _cluster({"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
    assert _cluster({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    three = {"LM_COORDINATOR": "h:1", "LM_PROCESSES": "3", "LM_PROCESS": "2"}
    found = _cluster(three)
    assert found["coordinator_address"] == "h:1"
    assert (found["num_processes"], found["process_id"]) == (3, 2)


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"LM_PROCESSES": "2", "LM_PROCESS": "0"}, "LM_PROCESSES"),
        ({"LM_PROCESS": "0", "LM_COORDINATOR": "auto"}, "LM_PROCESS"),
        ({"LM_COORDINATOR": "host"}, "LM_COORDINATOR"),
        ({"LM_COORDINATOR": "host:port"}, "LM_COORDINATOR"),
        ({"LM_COORDINATOR": "h:1"}, "LM_PROCESSES"),
        ({"LM_COORDINATOR": "h:1", "LM_PROCESSES": "2"}, "LM_PROCESS"),
        (
            {"LM_COORDINATOR": "h:1", "LM_PROCESSES": "2", "LM_PROCESS": "2"},
            "LM_PROCESS",
        ),
        (
            {"LM_COORDINATOR": "h:1", "LM_PROCESSES": "-2", "LM_PROCESS": "0"},
            "LM_PROCESSES",
        ),
    ],
)
def test_half_a_cluster_is_refused(environ, where):
    with pytest.raises(errors.ConfigError) as caught:
        _cluster(environ)
    assert caught.value.where == where


def test_a_thread_that_is_not_the_main_one_works_without_signals(capsys):
    """As a notebook's executor calls a command."""
    codes = []

    def act():
        with Preemption() as preemption:
            assert not preemption.requested(1)
            return preemption.wait(lambda: 3)

    thread = threading.Thread(target=lambda: codes.append(run_main(act)))
    thread.start()
    thread.join(30)
    assert codes == [3]
    assert "not in the main thread" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (RuntimeError("INTERNAL: open /x: Too many open files"), "open files"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("can't start new thread"), "memory"),
        (MemoryError(), "memory"),
    ],
)
def test_what_the_machine_lacks_is_a_line_with_5(capsys, error, named):
    def act():
        raise error

    assert run_main(act) == 5
    said = capsys.readouterr().err
    assert said.startswith(f"error[storage] {named}: ") and len(said.splitlines()) == 1


SETUP = """
    import sys
    from lm.host.process import platform_setup, run_main
    sys.exit(run_main(lambda: print(platform_setup())))
"""


@pytest.mark.slow
def test_a_platform_that_does_not_start_is_refused():
    returned, _, err = finish(start(SETUP, JAX_PLATFORMS="nonsense"))
    assert returned == 2 and err.splitlines()[-1].startswith("error[config] JAX_PLA")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def cluster(body: str, **environ: str) -> list[subprocess.Popen]:
    """Two processes of one run on this machine."""
    place = f"localhost:{free_port()}"
    return [
        start(
            body,
            LM_COORDINATOR=place,
            LM_PROCESSES="2",
            LM_PROCESS=str(process),
            **environ,
        )
        for process in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_peer_that_does_not_come_is_8_within_the_limit(process):
    place = f"localhost:{free_port()}"
    environ = {"LM_PROCESSES": "2", "LM_PROCESS": str(process)}
    began = time.monotonic()
    returned, _, err = finish(
        start(SETUP, LM_COORDINATOR=place, LM_PEER_TIMEOUT="2", **environ)
    )
    assert returned == 8 and f"start at {place}: found process {process} alone" in err
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_two_processes_start_as_one_run():
    body = """
        import sys
        from lm.host.process import platform_setup, run_main
        def run():
            print(platform_setup())
            import jax
            from jax.experimental import multihost_utils
            print(jax.process_index(), multihost_utils.process_allgather(
                jax.numpy.array([jax.process_index() + 1])).sum())
        sys.exit(run_main(run))
    """
    for i, process in enumerate(cluster(body)):
        returned, out, err = finish(process)
        assert returned == 0, err
        assert "devices: 2 x cpu, processes: 2" in out and f"\n{i} 3\n" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "codes"), [(signal.SIGTERM, [75, 75]), (signal.SIGINT, [130, 75])]
)
def test_a_signal_to_one_process_stops_both_at_the_same_step(number, codes):
    body = """
        import sys, time
        from lm.host.process import Preemption, platform_setup, run_main
        def run():
            platform_setup()
            with Preemption() as preemption:
                for step in range(1, 300):
                    print("step", step)
                    time.sleep(0.1)
                    if preemption.requested(step):
                        print("saved", step)
                        return preemption.exit_code
        sys.exit(run_main(run))
    """
    both = cluster(body)
    while both[0].stdout.readline() != "step 3\n":
        pass
    both[0].send_signal(number)
    ended = [finish(process) for process in both]
    assert [each[0] for each in ended] == codes, [each[2] for each in ended]
    saved = [each[1].splitlines()[-1] for each in ended]
    assert saved[0] == saved[1] and saved[0].startswith("saved")


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("RLIMIT_NOFILE, (24, 24)", "open files: found a limit of 24, expected 64"),
        ("RLIMIT_AS, (2**30, 2**30)", "memory: found 1,073,741,824 bytes of address"),
    ],
)
def test_a_limit_under_which_jax_would_abort_is_a_line_with_5(limit, named):
    body = f"""
    import resource, sys
    from lm.host.process import platform_setup, run_main
    resource.setrlimit(resource.{limit})
    sys.exit(run_main(lambda: print(platform_setup())))
    """
    returned, _, err = finish(start(body))
    assert returned == 5 and err.startswith(f"error[storage] {named}"), err
    assert len(err.splitlines()) == 1


def test_a_soft_limit_of_files_is_raised():
    body = """
    import resource
    from lm.host.process import check_limits
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
    check_limits()
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64)
    """
    returned, out, _ = finish(start(body))
    assert returned == 0 and out.strip() == "True"
