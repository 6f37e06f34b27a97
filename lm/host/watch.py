"""Ends a process that waits too long: phases have time limits, processes heartbeats.

A thread checks what the run is doing. When a phase exceeds its limit, or when another
process of the run has sent no heartbeat for too long, it writes the stacks of all
threads to `stacks.txt` in the workdir, prints in one line which process or phase is
missing, and ends the process with exit code 8. The same command again continues.

Environment, both optional:

- LM_PHASE_LIMIT: seconds that a step, a save or the wait for a batch may take, 1800 by
  default.
- LM_PEER_LIMIT: seconds without a heartbeat of another process, 10 by default.
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
_barriers = itertools.count()  # makes the name of each barrier unique


class Watch:
    """Watches a run, as a context; the run calls `at` when a phase begins.

    Args:
      workdir: the folder of `stacks.txt`.
      client: jax's client of the service that the processes share; None for a single
        process.
      process: the number of this process.
      processes: how many processes there are.
      phase_limit, peer_limit: seconds; None: those of the environment.
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
        if phase_limit is None:
            phase_limit = environ.whole("LM_PHASE_LIMIT", 1800)
        self._limit = phase_limit
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
            # The end of another process often shows first as a broken connection.
            lost = self._peers.await_lost()
            if lost:
                raise self._lost(lost) from error
        self._peers.stop(error)

    def at(self, phase: str, times: float = 1) -> None:
        """Begins a phase, such as "step 12".

        Args:
          times: the phase may take `times` the limit; infinite where its length is not
            known, such as that of building an index of rows.
        """
        self._phase, self._seconds = phase, times * self._limit
        self._deadline = time.monotonic() + self._seconds
        storage.crash_point(phase.partition(" ")[0])

    def _follow(self) -> None:
        last = armed = time.monotonic()
        while not self._done.wait(TICK):
            now = time.monotonic()
            if now - armed > 20 * TICK:  # for native code that blocks all threads
                faulthandler.dump_traceback_later(
                    self._limit + 60, exit=True, file=sys.__stderr__ or sys.stderr
                )
                armed = now
            if now - last > 10 * TICK:
                self._deadline += now - last  # This process itself was stopped.
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
        """Describes where the other processes are, for the error."""
        return f" ({self._peers.doing()})" if self._peers else ""

    def _lost(self, lost: str) -> PeerError:
        """Makes the error for a process that is lost."""
        return PeerError(
            lost,
            f"no heartbeat (here: {self._phase})",
            "every process of the run",
            "run the same command again, in every process",
        )

    def _aborted(self) -> None:
        """Ends the process with our own line where jax would abort it.

        jax does that when it has lost process 0.
        """
        peers = self._peers
        first = peers.lost() or peers.name(0) if peers else "process 0"
        self._stop(self._lost(first))

    def _stop(self, error: PeerError) -> None:
        """Writes all stacks, prints the error, and ends the process."""
        with suppress(OSError, Refusal), self._open_stacks() as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {error}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"\n{error.line()}", file=sys.stderr, flush=True)
        self._end(error.exit_code)

    def _open_stacks(self) -> TextIO:
        storage.check_regular(self._stacks)
        # Several processes may write theirs, one after the other.
        return open(self._stacks, "a")


def of_run(workdir: Path) -> Watch:
    """Makes the watch of this process; jax has been started."""
    import jax
    from jax._src import distributed  # jax has no public way to its client.

    return Watch(
        workdir,
        client=distributed.global_state.client,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


class Peers:
    """Exchanges heartbeats between the processes of a run, through jax's own service.

    A heartbeat is a number that grows. Each process measures how long the number of
    another one stays the same; the clocks of two machines are never compared.
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
        """Sends the last heartbeat: the process ends, because of `error` if given."""
        self._done.set()
        with suppress(Exception):
            reason = f"{type(error).__name__}: {error}" if error else ""
            self._send(" ".join(reason.split())[:500])

    def lost(self) -> str | None:
        """Describes the process that is lost, and why it ended; None if none is."""
        now = time.monotonic()
        for process, (text, since) in self._signs.items():
            sign = json.loads(text or "{}")
            if sign.get("end"):
                return f"{self.name(process)}, which ended ({sign['end']})"
            if now - since > self._limit and sign.get("end") is None:
                return self.name(process)
        # The service runs in process 0: without it no heartbeat arrives at all.
        return self.name(0) if now - self._answered > self._limit else None

    def await_lost(self) -> str | None:
        """Waits until the limit shows whether a process is lost; returns as `lost`."""
        deadline = time.monotonic() + self._limit + 2 * TICK
        while not (lost := self.lost()) and time.monotonic() < deadline:
            time.sleep(TICK)
        return lost

    def name(self, process: int) -> str:
        """Describes a process, with its machine and its last phase if known."""
        return f"process {process}{self._last(process, 'lost at ')}"

    def doing(self) -> str:
        """Describes the phases of the other processes, for one that waits for them."""
        return ", ".join(f"process {p}{self._last(p, 'at ')}" for p in self._signs)

    def _last(self, process: int, verb: str) -> str:
        sign = json.loads(self._signs.get(process, ("", 0))[0] or "{}")
        return f" ({sign['host']}) {verb}{sign['phase']}" if sign else ""

    def _beat(self) -> None:
        """Sends and receives heartbeats until the end."""
        while not self._done.wait(2 * TICK):
            try:
                self._send(None)
                found = self._client.key_value_dir_get("lm/signs/")
            except Exception:
                continue  # `lost` sees the age of `_answered`.
            now = self._answered = time.monotonic()
            for key, text in found:
                process = int(key.rpartition("/")[2])
                if self._signs.get(process, (text,))[0] != text:
                    self._signs[process] = text, now

    def _send(self, end: str | None) -> None:
        """Sends a heartbeat; `end` is why the process ends, None while it runs."""
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
    """Waits for all processes; each must call it at the same places.

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
    """Calls `act` where native code aborts the process.

    jax aborts within a second when its service is gone, and has no other hook.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handlers.append(kind(lambda number: act()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
