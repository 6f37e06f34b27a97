"""What is done to a command before it runs, in its process (see `server.py`)."""

import os
import time


def slow() -> None:
    """A tenth of a second longer for each row, so that a signal finds the loop."""
    from lm.workdir.writer import Writer

    row = Writer.row

    def slowly(self, *arguments):
        time.sleep(0.1)
        row(self, *arguments)

    Writer.row = slowly


def data_that_stop() -> None:
    """The fourth batch does not come."""
    from lm.data import pipeline

    prefetch = pipeline.prefetch

    def stopping(items, put, depth=2):
        for number, item in enumerate(prefetch(items, put, depth)):
            if number == 3 and depth == 2:
                print("no more data", flush=True)
                time.sleep(3600)
            yield item

    pipeline.prefetch = stopping


def small_files() -> None:
    """No file may grow beyond the size in SMALL, as on a disk that is full."""
    import resource

    limit = int(os.environ["SMALL"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def no_network() -> None:
    """Nothing but this machine can be reached."""
    import socket

    connect = socket.socket.connect

    def guarded(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1")
        if not local:
            print("NETWORK", address, flush=True)
            raise OSError("the network is closed")
        return connect(self, address)

    socket.socket.connect = guarded


def one_core() -> None:
    """The process runs on a single core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
