"""Measures steps: time, waiting for data, memory, share of the machine's peak."""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# Dense peaks of one device in FLOP/s, as its maker states them: (half precision,
# float32). A float32 product counts at jax's default precision: bfloat16 passes on TPU,
# TF32 on a GPU that has it. One device is one core of a TPU v2, v3 and 7x, else a chip.
# The first name that occurs in the device's kind counts, so longer names come first.
PEAKS = {
    "TPU v2": (23e12, 23e12),
    "TPU v3": (61.5e12, 61.5e12),
    "TPU v4 lite": (137e12, 137e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v5": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
    "TPU v6e": (918e12, 918e12),
    "TPU7x": (1153.5e12, 1153.5e12),
    "GB200": (2500e12, 1250e12),
    "B200": (2250e12, 1100e12),
    "H200 NVL": (835.5e12, 417.5e12),
    "H200": (989e12, 494.5e12),
    "H100 NVL": (835.5e12, 417.5e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494.5e12),
    "A100": (312e12, 156e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 62.5e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Looks up the stated peak of one device in FLOP/s; None where it is not known.

    Args:
      device_kind: as jax gives it, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3".
      dtype: "bfloat16", "float16" or "float32".
    """
    if re.search(r"\bMIG\b", device_kind):  # A slice of a GPU has no stated peak.
        return None
    for name, (half, single) in PEAKS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return {"bfloat16": half, "float16": half, "float32": single}.get(dtype)
    return None


def device_peak(dtype: str) -> float | None:
    """Returns the peak of one device of this process in FLOP/s; on a CPU it measures.

    The peak of a CPU is that of a plain matrix product, measured once in about 0.2 s.
    All CPU devices of a process share its cores, so each counts as a part of it.
    """
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return peak_flops(device.device_kind, dtype)
    return _measured_peak(dtype) / jax.local_device_count()


@cache
def _measured_peak(dtype: str) -> float:
    import jax
    import jax.numpy as jnp

    n = 1024
    matrix = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    product(matrix, matrix).block_until_ready()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.15:
        before = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - before)
    return 2 * n**3 / best


def peak_memory(compiled: Any = None) -> dict[str, int]:
    """Returns the peak of used memory so far, in bytes.

    Args:
      compiled: the compiled update step (`jax.stages.Compiled`).

    Returns:
      `device_peak_bytes` of the fullest local device where the platform counts them,
      else `process_peak_bytes` of this process; with `compiled`, `program_bytes` too,
      what the compiler plans per device for arguments, results and temporaries.
    """
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in each for each in stats):
        peak = {"device_peak_bytes": max(each["peak_bytes_in_use"] for each in stats)}
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        usage = resource.getrusage(resource.RUSAGE_SELF)
        peak = {"process_peak_bytes": usage.ru_maxrss * unit}
    plan = None if compiled is None else compiled.memory_analysis()
    if plan is not None:
        peak["program_bytes"] = (
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            + plan.temp_size_in_bytes
            - plan.alias_size_in_bytes
        )
    return peak


def describe_peak(compiled: Any = None) -> str:
    """Formats `peak_memory` as one line."""
    return "peak: " + ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {value / 2**20:,.1f} MiB"
        for name, value in peak_memory(compiled).items()
    )


def clock(seconds: float) -> str:
    """Formats a duration, such as "1:02:33"."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def with_progress(
    items: Iterable[T], total: int, note: Callable[[str], None], every: float = 30.0
) -> Iterator[T]:
    """Yields the items, and notes how many are done and the time that is left.

    Args:
      total: how many items there are.
      note: prints a line.
      every: seconds between two lines.
    """
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= every:
            left = (now - began) / done * (total - done)
            note(f"{done} of {total}, left {clock(left)}")
            last = now
        yield item


class StepTimer:
    """Measures the time of each step, and what it is spent on.

        model FLOPs utilisation =
            model FLOPs of a step / (seconds of a step x peak FLOP/s x devices)

    as in PaLM (Chowdhery et al. 2022, appendix B): recomputation does not count. The
    first step of a process includes its compilation.

    Args:
      peak: FLOP/s of one device (`device_peak`); None: no `mfu`.
      devices: devices of all processes.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        peak: float | None = None,
        devices: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clock = clock
        self._total_peak = None if peak is None else peak * devices
        self._waited = self._aside = 0.0
        self._last = clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the block, a wait for the next batch."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Measures the block, an evaluation or a save, which is no time of the step."""
        start = self._clock()
        yield
        self._aside += self._clock() - start

    def lap(self, tokens: int, flops: float | None = None) -> dict[str, float]:
        """Ends a step; call it when the step's measurements have arrived.

        Args:
          tokens: tokens of the step over all processes.
          flops: model FLOPs of the step over all devices; None: no `mfu`.

        Returns:
          `time` (Unix seconds), `tokens`, `step_seconds`, `tokens_per_second`,
          `waiting` (share of the step spent waiting for data, 0 to 1),
          `aside_seconds` where there were any, and `mfu` where it is known.
        """
        now = self._clock()
        seconds = max(now - self._last - self._aside, 1e-9)
        row = {
            "time": time.time(),
            "tokens": tokens,
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "waiting": min(self._waited / seconds, 1.0),
        }
        if self._aside:
            row["aside_seconds"] = self._aside
        if flops is not None and self._total_peak is not None:
            row["mfu"] = flops / (seconds * self._total_peak)
        self._waited = self._aside = 0.0
        self._last = now
        return row
