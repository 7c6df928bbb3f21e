"""Functions that all benchmarks share: alternating medians, added memory, and a description of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_meta.execution.capture import recorder


def alternating_times(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of one call of each function in each turn; they alternate, so that all see the same noise.

    In a turn a function is called at least once, and until about 0.2 seconds have passed.

    Args:
        functions: What to time, already warm.
        repeats: How many turns.
    """
    calls = {}
    for name, function in functions.items():
        start = time.perf_counter()
        function()
        calls[name] = max(1, round(0.2 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append((time.perf_counter() - start) / calls[name])
    return times


def alternating_medians(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Medians of `alternating_times`."""
    return {name: statistics.median(times) for name, times in alternating_times(functions, repeats).items()}


def median_ratio(times: list[float], others: list[float]) -> float:
    """Median of the turns' ratios: a machine that slows down for a while slows both sides of a turn."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def record_at_once() -> None:
    """Let learners record their first step, so that later steps of a training are measured."""
    recorder.ALIKE_BEFORE_RECORDING = 0


class AddedPeak:
    """The rise of resident memory since construction, at its peak, in MiB; on Linux."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        self._before = self._status("VmRSS")

    def mebibytes(self) -> float:
        """Return the rise until now."""
        return (self._status("VmHWM") - self._before) / 1024

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name)))


@contextmanager
def threads(count: int) -> Any:
    """Use that many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product, the machine's practical ceiling."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    multiply()
    return 2 * size**3 / alternating_medians({"": multiply}, 7)[""]


def machine() -> str:
    """One line about processor, threads and versions."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
