"""Step times from a clock of our own; peaks; memory."""

import jax
import jax.numpy as jnp
import pytest

from lm.host.timing import (
    PEAKS,
    StepTimer,
    _measured_peak,
    device_peak,
    peak_flops,
    peak_memory,
    with_progress,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lap_tells_step_time_waiting_speed_and_utilisation():
    clock = Clock()
    timer = StepTimer(peak=1e9, devices=4, clock=clock)
    clock.now += 1.0
    with timer.waiting():
        clock.now += 0.5
    clock.now += 0.5
    with timer.aside():
        clock.now += 10.0
    row = timer.lap(tokens=1000, flops=6e9)
    assert row["step_seconds"] == pytest.approx(2.0)
    assert row["tokens_per_second"] == pytest.approx(500.0)
    assert row["waiting"] == pytest.approx(0.25)
    assert row["aside_seconds"] == pytest.approx(10.0)
    assert row["mfu"] == pytest.approx(6e9 / (2.0 * 1e9 * 4))
    clock.now += 4.0
    row = timer.lap(tokens=1000)  # Nothing of the last step is left.
    assert row["step_seconds"] == pytest.approx(4.0)
    assert row["waiting"] == 0 and "aside_seconds" not in row


def test_utilisation_is_absent_where_the_peak_is_unknown():
    assert "mfu" not in StepTimer(peak=None).lap(1, flops=6e9)
    assert "mfu" not in StepTimer(peak=1e9).lap(1, flops=None)


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v5 lite", "float32", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A10G", "bfloat16", 70e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494.5e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA GB200", "bfloat16", 2500e12),
        ("NVIDIA H200 MIG 1g.18gb", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA Something New", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "int8", None),
    ],
)
def test_stated_peaks_by_the_kind_of_device(kind, dtype, peak):
    assert peak_flops(kind, dtype) == peak


def test_every_entry_of_the_table_can_be_found():
    for name, (half, single) in PEAKS.items():
        assert peak_flops(f"NVIDIA {name}", "bfloat16") == half >= single


def test_a_cpus_peak_is_measured_and_shared_by_its_devices():
    assert jax.local_device_count() == 8
    whole = _measured_peak("float32")
    assert 1e9 < whole < 1e14
    assert device_peak("float32") == whole / 8  # The same measurement.


def test_memory_of_the_process_and_of_the_program():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()
    peak = peak_memory(compiled)
    assert peak["process_peak_bytes"] > 50e6
    assert 2 * 256 * 256 * 4 <= peak["program_bytes"] < 50e6
    assert "program_bytes" not in peak_memory()


def test_long_loops_say_how_far_they_are(monkeypatch):
    clock, lines = Clock(), []
    monkeypatch.setattr("time.monotonic", clock)
    for item in with_progress("abcdefghij", 10, lines.append, every=30):
        clock.now += 12 if item < "f" else 1
    assert lines == ["3 of 10, left 0:01:24"]
    clock.now, lines[:] = 0, []
    for _ in with_progress(range(4), 4, lines.append, every=0):
        clock.now += 1
    assert lines == [f"{n} of 4, left 0:00:0{4 - n}" for n in (1, 2, 3)]
    assert list(with_progress(iter(()), 0, lines.append)) == [] and len(lines) == 3
