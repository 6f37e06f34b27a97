"""Forks a process for each command, with everything imported: seconds each are saved.

Speaks JSON lines: {"argv", "environ", "output", "before"} is answered by {"pid"}, and
{"wait": pid} by {"code"}, None while it runs. `before` is "module:function", called in
the new process first.
"""

import atexit
import importlib
import json
import os
import signal
import sys
import threading
import traceback


def run(request: dict) -> None:
    """In the new process: all that a fresh interpreter would do, to the end of it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["environ"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        if request["before"]:
            module, _, function = request["before"].partition(":")
            getattr(importlib.import_module(module), function)()
        module, *argv = request["argv"]
        code = importlib.import_module(module).main(argv)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            print(json.dumps({"code": code}), flush=True)
        elif pid := os.fork():
            print(json.dumps({"pid": pid}), flush=True)
        else:
            os.close(0)
            run(request)


if __name__ == "__main__":
    import grain  # noqa: F401
    import jax.experimental.multihost_utils  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    print("{}", flush=True)
    serve()
