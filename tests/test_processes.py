"""Two processes of one run on this machine: batches, losses, checkpoints."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.workdir.writer import read_rows

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--config=configs/bert_tiny.py:quick",
    "--config.steps=6",
    "--config.checkpoint.every=3",
    "--config.model.d_model=32",
    "--config.model.num_heads=2",
    "--config.model.d_ff=64",
    "--config.model.dropout=0.0",
    "--config.model.attention.dropout=0.0",
]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def train(workdir, processes, devices, *flags):
    """Runs the main job in so many processes of so many devices each."""
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "LM_PEER_TIMEOUT": "100",
    }
    if processes > 1:
        environ["LM_COORDINATOR"] = f"localhost:{free_port()}"
        environ["LM_PROCESSES"] = str(processes)
    command = [sys.executable, "-m", "lm.main", f"--workdir={workdir}", *FLAGS, *flags]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ | ({"LM_PROCESS": str(p)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for p in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), outputs
    return read_rows(workdir / "metrics.jsonl")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    one = train(tmp_path / "one", 1, 2)
    two = train(tmp_path / "two", 2, 1)
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, err_msg=name)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    straight = train(tmp_path / "straight", 1, 2)
    train(tmp_path / "moved", 2, 1, "--config.steps=3", "--config.optim.warmup=1")
    moved = train(tmp_path / "moved", 1, 2, "--allow-change=optim.warmup")
    assert [row["step"] for row in moved] == [row["step"] for row in straight]
    assert moved[5]["train/mlm_count"] == straight[5]["train/mlm_count"]
