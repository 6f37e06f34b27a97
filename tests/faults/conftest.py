"""Commands run in processes of their own, which can be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import xla

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """A command that runs, and what it says."""

    pid: int
    output: Path
    server: "Server"
    code: int | None = None

    def poll(self) -> int | None:
        # A process can be waited for once only; its code is kept.
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid})["code"]
        return self.code

    def wait(self, seconds: float = 120) -> int:
        """The exit code, negative for a signal."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds} s: {self.text()}")
            time.sleep(0.02)
        return code

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def error(self) -> str:
        """The line of the refusal, which must be one, without a traceback."""
        text = self.text()
        lines = [line for line in text.splitlines() if line.startswith("error[")]
        assert len(lines) == 1 and "Traceback" not in text, text
        return lines[0]

    def await_text(self, part: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while part not in self.text():
            assert self.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)


class Server:
    """The forking server of `server.py`."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.cache = folder / "compiled"
        self.cache.mkdir(mode=0o700)
        environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("server.py"))],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout.readline() == "{}\n"

    def ask(self, request: dict) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if answer := self.process.stdout.readline():
                return json.loads(answer)
        said = self.errors.read_text()
        raise RuntimeError(f"the server ended, {self.process.wait(10)}: {said}")

    def start(
        self,
        workdir: Path,
        *flags: str,
        module: str = "lm.main",
        config: str = "tests/faults/config.py",
        before: str = "",
        devices: int = 1,
        **environ: str,
    ) -> Running:
        self.count += 1
        output = self.folder / f"output-{self.count}"
        argv = [module, f"--workdir={workdir}", *flags]
        if config:
            argv.append(f"--config={config}")
        environ = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            + xla.FLAGS,
            "LM_COMPILE_CACHE": str(self.cache),
            **environ,
        }
        asked = {"argv": argv, "environ": environ, "output": str(output)}
        return Running(self.ask(asked | {"before": before})["pid"], output, self)

    def run(self, workdir: Path, *flags: str, **options: str) -> Running:
        """The same, to its end; `code` is its exit code."""
        running = self.start(workdir, *flags, **options)
        running.wait()
        return running

    def pair(self, workdir: Path, port: int, *flags: str, **environ: str) -> list:
        """Two processes of one run; an item of `each` is the environ of one of them."""
        each = environ.pop("each", ({}, {}))
        place = {"LM_COORDINATOR": f"localhost:{port}", "LM_PROCESSES": "2"}
        return [
            self.start(
                workdir, *flags, **environ, **place, LM_PROCESS=str(i), **each[i]
            )
            for i in (0, 1)
        ]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def golden(server, tmp_path_factory):
    """The tiny run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("golden") / "run"
    done = server.run(workdir)
    assert done.code == 0, done.text()
    return workdir
