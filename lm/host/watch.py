"""Nothing waits for ever: each phase of a run has a limit, each process a pulse.

A thread follows what the run is doing. When a phase passes its limit, or another
process of the run has shown no sign of life for too long, it writes all stacks to
`stacks.txt` in the workdir, says in a line who and what is missing, and ends the
process with exit code 8: the same command again continues.

Environment, both optional:

- LM_PHASE_LIMIT: seconds that a step, a save or the wait for a batch may take, 1800 by
  default.
- LM_PEER_LIMIT: seconds without a sign of life from another process, 10 by default.
"""

import ctypes
import faulthandler
import itertools
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from lm.errors import PeerError, Refusal
from lm.host import environ, storage

TICK = 0.5  # seconds
_barriers = itertools.count()  # The name of a barrier is used once.


class Watch:
    """Follows a run, as a context; `at` says what the run is doing.

    Args:
      workdir: where `stacks.txt` goes.
      client: jax's client of the service that the processes share, None for a process
        alone.
      process, processes: which one this is, and of how many.
      phase_limit, peer_limit: seconds; None takes the environment's.
      end: ends the process, for tests.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        client: Any = None,
        process: int = 0,
        processes: int = 1,
        phase_limit: float | None = None,
        peer_limit: float | None = None,
        end: Callable[[int], None] = os._exit,
    ):
        self._stacks, self._end = Path(workdir) / "stacks.txt", end
        self._limit = (
            environ.whole("LM_PHASE_LIMIT", 1800)
            if phase_limit is None
            else (phase_limit)
        )
        limit = environ.whole("LM_PEER_LIMIT", 10) if peer_limit is None else peer_limit
        self._peers = None
        if processes > 1:
            self._peers = Peers(client, process, processes, limit, lambda: self._phase)
        self._phase, self._seconds, self._deadline = "start", math.inf, math.inf
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        if self._peers:
            self._peers.start()
            _on_abort(self._aborted)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if not self._peers:
            return
        if isinstance(error, Exception) and not isinstance(error, Refusal):
            # A connection that breaks is how another's end is often seen first.
            lost = self._peers.await_lost()
            if lost:
                raise self._lost(lost) from error
        self._peers.stop(error)

    def at(self, phase: str, times: float = 1) -> None:
        """The run now begins `phase`, such as "step 12".

        Args:
          times: of the limit it may take so much; infinite where its length is not
            known, such as that of an index of rows.
        """
        self._phase, self._seconds = phase, times * self._limit
        self._deadline = time.monotonic() + self._seconds
        storage.crash_point(phase.partition(" ")[0])

    def _follow(self) -> None:
        last = armed = time.monotonic()
        while not self._done.wait(TICK):
            now = time.monotonic()
            if now - armed > 20 * TICK:  # For native code that keeps all threads out.
                faulthandler.dump_traceback_later(
                    self._limit + 60, exit=True, file=sys.__stderr__ or sys.stderr
                )
                armed = now
            if now - last > 10 * TICK:
                self._deadline += now - last  # This process itself was frozen.
            last = now
            if now > self._deadline:
                self._stop(
                    PeerError(
                        self._phase,
                        f"no end within the limit{self._others()}",
                        f"an end within {self._seconds:.0f} s (LM_PHASE_LIMIT)",
                        f"see {self._stacks}; run the same command again",
                    )
                )
            if self._peers and (lost := self._peers.lost()):
                self._stop(self._lost(lost))

    def _others(self) -> str:
        return f" ({self._peers.doing()})" if self._peers else ""

    def _lost(self, lost: str) -> PeerError:
        return PeerError(
            lost,
            f"no sign of life (here: {self._phase})",
            "every process of the run",
            "run the same command again, in every process",
        )

    def _aborted(self) -> None:
        """jax is about to abort the process, since it lost the process 0."""
        peers = self._peers
        first = peers.lost() or peers.name(0) if peers else "process 0"
        self._stop(self._lost(first))

    def _stop(self, error: PeerError) -> None:
        with suppress(OSError, Refusal), self._open_stacks() as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {error}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"\n{error.line()}", file=sys.stderr, flush=True)
        self._end(error.exit_code)

    def _open_stacks(self) -> TextIO:
        storage.check_regular(self._stacks)
        return open(self._stacks, "w")


def of_run(workdir: Path) -> Watch:
    """The watch of this process of the run that jax has started."""
    import jax
    from jax._src import distributed  # jax shows its client nowhere else.

    return Watch(
        workdir,
        client=distributed.global_state.client,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


class Peers:
    """Signs of life of the processes of a run, in the service that jax runs for them.

    A sign is a number that grows; it is compared with the one before, so that no clock
    is compared with another's.
    """

    def __init__(
        self,
        client: Any,
        process: int,
        processes: int,
        limit: float,
        phase: Callable[[], str],
    ):
        self._client, self._process, self._limit = client, process, limit
        self._phase = phase
        now = time.monotonic()
        self._answered = now  # when the service last answered
        self._signs = {p: ("", now) for p in range(processes) if p != process}
        self._count = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="peers")

    def start(self) -> None:
        self._thread.start()

    def stop(self, error: BaseException | None) -> None:
        """The last sign: this process ends, and it is no accident unless `error`."""
        self._done.set()
        with suppress(Exception):
            told = f"{type(error).__name__}: {error}" if error else ""
            self._tell(" ".join(told.split())[:500])

    def lost(self) -> str | None:
        """The process that is lost, with its last words, or None."""
        now = time.monotonic()
        for process, (text, since) in self._signs.items():
            sign = json.loads(text or "{}")
            if sign.get("end"):
                return f"{self.name(process)}, which ended ({sign['end']})"
            if now - since > self._limit and sign.get("end") is None:
                return self.name(process)
        # Without the service no sign arrives at all; it runs in process 0.
        return self.name(0) if now - self._answered > self._limit else None

    def await_lost(self) -> str | None:
        """As `lost`, for as long as it takes to be sure."""
        deadline = time.monotonic() + self._limit + 2 * TICK
        while not (lost := self.lost()) and time.monotonic() < deadline:
            time.sleep(TICK)
        return lost

    def name(self, process: int) -> str:
        return f"process {process}{self._last(process, 'lost at ')}"

    def doing(self) -> str:
        """Where the other processes are, for one that waits for them."""
        return ", ".join(f"process {p}{self._last(p, 'at ')}" for p in self._signs)

    def _last(self, process: int, verb: str) -> str:
        sign = json.loads(self._signs.get(process, ("", 0))[0] or "{}")
        return f" ({sign['host']}) {verb}{sign['phase']}" if sign else ""

    def _beat(self) -> None:
        while not self._done.wait(2 * TICK):
            try:
                self._tell(None)
                found = self._client.key_value_dir_get("lm/signs/")
            except Exception:
                continue  # `_answered` grows old.
            now = self._answered = time.monotonic()
            for key, text in found:
                process = int(key.rpartition("/")[2])
                if self._signs.get(process, (text,))[0] != text:
                    self._signs[process] = text, now

    def _tell(self, end: str | None) -> None:
        self._count += 1
        sign = {
            "count": self._count,
            "host": socket.gethostname(),
            "phase": self._phase(),
            "end": end,
        }
        key = f"lm/signs/{self._process}"
        self._client.key_value_set(key, json.dumps(sign), allow_overwrite=True)


def barrier(name: str, limit: float) -> None:
    """Waits for all processes, each of which comes here the same number of times.

    Raises:
      PeerError: one of them did not come within `limit` seconds.
    """
    import jax
    from jax._src import distributed  # jax has no public barrier with a time limit.

    if jax.process_count() == 1:
        return
    key = f"{name} {next(_barriers)}"
    storage.crash_point("barrier")
    try:
        client: Any = distributed.global_state.client
        client.wait_at_barrier(key, int(limit * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise PeerError(
            f"process {jax.process_index()}",
            str(error).splitlines()[0],
            f"every process at the barrier {name!r} within {limit:.0f} s",
            "run the same command again",
        ) from error


_handlers: list[Any] = []  # native code calls them, so they must stay alive


def _on_abort(act: Callable[[], None]) -> None:
    """Calls `act` where native code would abort the process.

    jax has no other way: when its service is gone, it aborts within the second.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handlers.append(kind(lambda number: act()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
