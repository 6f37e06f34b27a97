"""Starts and stops a process: platform, exit codes, signals, other processes.

Environment, all optional:

- LM_COMPILE_CACHE: a directory, or `off`; by default ~/.cache/lm/jax. Compiled programs
  are code, so the directory must be the user's own with mode 0700.
- LM_COORDINATOR: `host:port` of process 0, with LM_PROCESSES (how many) and LM_PROCESS
  (which one this is, from 0); or `auto`, where jax finds them itself (TPU pods, Slurm,
  Open MPI); or `off`. Unset, it is `auto` in a Slurm step of several tasks and where
  TPU_WORKER_HOSTNAMES names several hosts, else `off`.
- LM_PEER_TIMEOUT: seconds to wait for the other processes at the start, 300 by default.
"""

import contextlib
import errno
import hashlib
import os
import platform
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from lm.errors import ConfigError, PeerError, Refusal, StorageError, escape
from lm.host import environ as environ_numbers
from lm.host import storage

PREEMPTED, INTERRUPTED, UNREAD = 75, 130, 141
# Limits of the process: what jax and its threads need at least, and what suits them.
LEAST_FILES, MOST_FILES = 64, 4096
LEAST_ADDRESSES = 2**31
T = TypeVar("T")


class Command(Protocol):
    """The `main` of a command; flags come from the shell where none are given."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


class Terminated(BaseException):
    """SIGTERM outside of the training loop; no `except Exception` catches it."""


def run_main(run: Callable[[], int | None], *, debug: bool = False) -> int:
    """Runs a command; turns an exception into one line on stderr and an exit code.

    0 done, 1 a bug of ours, 2 flag or config, 3 data, 4 checkpoint, 5 storage or
    memory, 6 numerical, 7 workdir in use, 8 peer, 75 SIGTERM, 130 Ctrl-C,
    141 the reader of the output has gone.

    One process of several that fails ends at once, without Python's normal exit, in
    which jax would wait for the other processes.

    Args:
      run: the command; returns its exit code, None for 0.
      debug: prints the traceback of a refusal too.
    """
    try:
        with _interruptible_waits():
            return run() or 0
    except KeyboardInterrupt:
        _report("stopped by Ctrl-C; the same command again continues")
        return _exit(INTERRUPTED)
    except Terminated:
        _report("stopped by SIGTERM; the same command again continues")
        return _exit(PREEMPTED)
    except BrokenPipeError:  # The reader, such as `head`, has read enough.
        _drop_output()
        return _exit(UNREAD)
    except Exception as error:
        refusal = error if isinstance(error, Refusal) else _exhausted(error)
        if refusal is None or debug:
            traceback.print_exc()
        if refusal is None:
            kind = type(error).__name__
            _report(f"error[bug] {kind}: an error that was not foreseen")
            return _exit(1)
        _report(refusal.line())
        return _exit(refusal.exit_code)


def _drop_output() -> None:
    """Sends standard output to nowhere, so that the flush at the exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(run: Callable[[list[str]], int | None]) -> Command:
    """Makes the `main` of a command: takes flags, returns the exit code.

    Args:
      run: the command; takes the flags, returns its exit code, None for 0.
    """

    def main(argv: list[str] | None = None) -> int:
        flags = sys.argv[1:] if argv is None else argv
        return run_main(lambda: run(flags), debug="--debug" in flags)

    return main


@contextlib.contextmanager
def _interruptible_waits() -> Iterator[None]:
    """Makes SIGTERM raise, and handles signals also while the main thread waits.

    Python calls a handler between two instructions of the main thread. If a signal
    comes just before that thread begins to wait, or if the system delivers it to
    another thread, the handler is called only after the wait, which may never end. So
    each signal is followed by SIGURG, which interrupts the wait and does nothing else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> None:
        raise Terminated

    reader, writer = os.pipe()  # Python writes the number of each signal.
    os.set_blocking(writer, False)
    main, over = threading.get_ident(), threading.Event()

    def follow() -> None:
        while number := os.read(reader, 1):
            for seconds in (0.1, 0.4, 1.5) if number[0] != signal.SIGURG else ():
                if not over.wait(seconds):
                    signal.pthread_kill(main, signal.SIGURG)
        os.close(reader)

    handlers = {signal.SIGTERM: terminate, signal.SIGURG: lambda *_: None}
    before = {number: signal.signal(number, act) for number, act in handlers.items()}
    fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=follow, daemon=True, name="signals").start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(fd)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(code: int) -> int:
    """Returns the code; one process of several ends with it at once."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    return code


def _report(line: str) -> None:
    """Prints a line on stderr, with control characters escaped."""
    print(escape(" ".join(line.split())), file=sys.stderr, flush=True)


def _exhausted(error: Exception) -> StorageError | None:
    """Makes the refusal for a full disk, or for memory or open files that ran out.

    Returns:
      None for any other error.
    """
    if isinstance(error, OSError) and error.errno in storage.FULL:
        if error.filename is not None:
            return storage.refusal(error, Path(os.fsdecode(error.filename)))
        _drop_output()
        found = (error.strerror or str(error)).lower()
        return StorageError("standard output", found, "room to write")
    # Compared by name: jax may not be imported, and the class has moved before.
    names = {each.__name__ for each in type(error).__mro__}
    device = names & {"JaxRuntimeError", "XlaRuntimeError"}
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        fix = "raise the limit of open files (ulimit -n)"
        return StorageError(
            "open files", " ".join(text.split())[:200], "room for more", fix
        )
    no_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in text
    exhausted = device and "RESOURCE_EXHAUSTED" in text
    if not (no_memory or no_thread or exhausted):
        return None
    return StorageError(
        "memory",
        f"no more of it ({' '.join(str(error).split())[:200] or 'on the host'})",
        "a run that fits",
        "halve batch_size or double grad_accum, set compute.remat, or use more devices",
    )


class Preemption:
    """Remembers SIGTERM and Ctrl-C until the training loop asks, after each step.

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.requested(step):
                    ...  # save, wait for the save
                    return preemption.exit_code

    Inside the block neither a first nor a second signal interrupts anything, so a save
    always finishes. In a run of several processes all of them answer True at the same
    step, one or two steps after the signal reached any of them.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        import jax

        self._shared = jax.distributed.is_initialized()
        if threading.current_thread() is not threading.main_thread():
            _report("note: not in the main thread, so SIGTERM and Ctrl-C do not save")
            return self
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        if not self._shared:  # There the service of jax has its own handler.
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Returns whether to save and end after `step`; all processes ask each step."""
        if not self._shared:
            return bool(self._seen)
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def wait(self, act: Callable[[], T]) -> T | None:
        """Returns `act()`, which waits; None where a signal interrupts the wait.

        With several processes nothing is interrupted: they go on until all of them know
        of the signal.
        """
        self._waiting = not self._shared
        try:
            return None if self._seen and self._waiting else act()
        except Terminated:
            return None
        finally:
            self._waiting = False

    @property
    def exit_code(self) -> int:
        """Returns the code of the signal that was seen: 130 for Ctrl-C, else 75."""
        return INTERRUPTED if signal.SIGINT in self._seen else PREEMPTED

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._seen:
            # A print here could fall into the middle of another.
            os.write(2, b"\nstopping: this step ends and is saved first\n")
        self._seen.add(number)
        if self._shared:  # jax's service passes SIGTERM on to the other processes.
            os.kill(os.getpid(), signal.SIGTERM)
        if self._waiting:
            self._waiting = False
            raise Terminated


def platform_setup(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Starts jax: compilation cache, other processes, devices. Call before any array.

    Returns:
      Lines for the log of the run.

    Raises:
      ConfigError: a variable of the environment is wrong, or JAX_PLATFORMS names a
        platform that does not start.
      PeerError: the other processes did not come within LM_PEER_TIMEOUT.
      StorageError: the directory in LM_COMPILE_CACHE is open to others.
    """
    check_limits()
    import jax

    notes = _compile_cache(environ)
    cluster = _cluster(environ)
    if cluster is not None:
        _join(cluster, environ_numbers.whole("LM_PEER_TIMEOUT", 300, environ=environ))
    try:
        devices = jax.devices()
    except RuntimeError as error:
        found = f"{environ.get('JAX_PLATFORMS', 'no value')} ({error})"
        raise ConfigError("JAX_PLATFORMS", found, "a platform that starts") from error
    kind, processes = devices[0].device_kind, jax.process_count()
    return [*notes, f"devices: {len(devices)} x {kind}, processes: {processes}"]


def check_limits() -> None:
    """Raises the limit of open files as far as it may go; refuses too low limits.

    Native code would abort the process when it has no file, thread or memory left.

    Raises:
      StorageError: names the limit and what a run needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < LEAST_FILES:
        raise StorageError(
            "open files",
            f"a limit of {wanted}",
            f"{LEAST_FILES} or more",
            "raise the limit (ulimit -n)",
        )
    room = resource.getrlimit(resource.RLIMIT_AS)[0]
    if room != resource.RLIM_INFINITY and room < LEAST_ADDRESSES:
        raise StorageError(
            "memory",
            f"{room:,} bytes of address space",
            f"{LEAST_ADDRESSES:,} or more",
            "raise the limit (ulimit -v)",
        )


def is_primary() -> bool:
    """Returns whether this process writes the files that all processes share."""
    import jax

    return jax.process_index() == 0


def _compile_cache(environ: Mapping[str, str]) -> list[str]:
    """Sets jax's compilation cache to a private directory; returns warnings."""
    import jax

    choice = environ.get("LM_COMPILE_CACHE", "")
    if choice == "off" or "JAX_COMPILATION_CACHE_DIR" in environ:
        return []
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")) / ".cache"
    root = Path(choice or Path(base) / "lm" / "jax")
    try:
        root = root.expanduser()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = root.stat()
        found = f"owner {facts.st_uid}, mode {facts.st_mode & 0o777:o}"
        private = facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    except (OSError, RuntimeError) as error:  # RuntimeError: "~" of nobody
        found, private = getattr(error, "strerror", None) or str(error), False
    if not private:
        expected = f"a directory of user {os.getuid()} with mode 700"
        if choice:
            fix = f"chmod 700 {root}, or LM_COMPILE_CACHE=off"
            raise StorageError(f"LM_COMPILE_CACHE={root}", found, expected, fix)
        return [f"warning: no compilation cache: {root}: {found}, not {expected}"]
    # A program that was compiled for one CPU may crash on another with the same home.
    jax.config.update("jax_compilation_cache_dir", str(root / _cpu()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return []


def _cpu() -> str:
    """Names this kind of CPU, such as "x86_64-1f3870be"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = ("model name", "flags", "Features", "CPU part")
    facts = sorted({line for line in lines if line.startswith(kinds)}) or lines[:1]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def _cluster(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Makes the arguments of jax.distributed.initialize; None for a single process."""
    several = (
        environ_numbers.whole("SLURM_STEP_NUM_TASKS", 1, 0, 2**24, environ) > 1
        or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
    )  # fmt: skip
    numbered = [name for name in ("LM_PROCESSES", "LM_PROCESS") if name in environ]
    coordinator = environ.get("LM_COORDINATOR") or ("auto" if several else "off")
    if coordinator in ("auto", "off"):
        if numbered:
            expected = "LM_COORDINATOR=host:port beside it"
            raise ConfigError(numbered[0], f"LM_COORDINATOR {coordinator}", expected)
        return {} if coordinator == "auto" else None
    host, _, port = coordinator.rpartition(":")
    plain = port.isascii() and port.isdecimal() and len(port) < 6
    if not host or not plain or not 0 < int(port) < 2**16:
        expected = "host:port, auto or off"
        raise ConfigError("LM_COORDINATOR", repr(coordinator), expected)
    processes = environ_numbers.whole("LM_PROCESSES", None, 1, 2**20, environ)
    process = environ_numbers.whole("LM_PROCESS", None, 0, 2**20, environ)
    if not 0 <= process < processes:
        expected = f"0 to {processes - 1}, since LM_PROCESSES={processes}"
        raise ConfigError("LM_PROCESS", str(process), expected)
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _join(cluster: dict[str, Any], seconds: int) -> None:
    """Waits for the other processes of the run; refuses after `seconds`."""
    import jax

    failure: list[Exception] = []

    def initialize() -> None:
        try:
            # jax aborts the process at its own limit, so that must be the later one.
            limit = seconds + 60
            jax.distributed.initialize(
                **cluster, initialization_timeout=limit, shutdown_timeout_seconds=60
            )
        except Exception as error:
            failure.append(error)

    # The call handles no signal, and ends the process when it fails in this thread.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        place = cluster.get("coordinator_address", "the coordinator jax found")
        who = f"process {cluster['process_id']}" if cluster else "this process"
        raise PeerError(
            f"start at {place}",
            f"{who} alone after {seconds} s",
            f"all {cluster.get('num_processes', '')} processes".replace("  ", " "),
            "start every process, see that the address is reached from each, "
            "or raise LM_PEER_TIMEOUT",
        )
    if failure:
        raise ConfigError(
            "LM_COORDINATOR",
            f"{type(failure[0]).__name__}: {failure[0]}",
            "a cluster that jax can start",
            "set LM_COORDINATOR=host:port, LM_PROCESSES and LM_PROCESS, or off",
        ) from failure[0]
