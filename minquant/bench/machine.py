"""The machine: its processor, and what that can do at most."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minquant.bench.limits import Probe, dot_probe, read_probe
from minquant.bench.threads import limited
from minquant.kernels.isa import available, chosen

__all__ = ["cores", "describe", "instructions", "processor"]

FAR = 256 * 2**20
"""Bytes that no cache holds."""

SECONDS = 0.3
PACKAGES = ("minquant", "numpy", "numba", "llvmlite", "torch", "onnxruntime")


def processor() -> str:
    """Its name, as the system has it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many threads this process can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> dict[str, Any]:
    """Which instruction kernels use, and which there are.

    Raises:
        ValueError: MINQUANT_ISA names one that is not there.
    """
    return {"isa": chosen().name, "available": [isa.name for isa in available()]}


def describe(threads: Sequence[int]) -> dict[str, Any]:
    """The processor and its measured limits, of one core and for each number of threads; GOP/s and GB/s are 10⁹."""
    measured = {}
    for count in sorted({1, *threads}):
        with limited(count):
            dot = dot_probe(chosen())
            measured[str(count)] = {
                "peak_int8_gops": _best(dot) if dot else None,
                "bandwidth_gb_s": _best(read_probe(FAR)),
            }
    return {
        "processor": processor(),
        "cores": cores(),
        **instructions(),
        **measured["1"],
        "by_threads": measured,
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _best(probe: Probe) -> float:
    """10⁹ a second. The best of many runs: whatever disturbs one only slows it."""
    probe.call()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        probe.call()
        best = min(best, time.perf_counter() - started)
    return probe.amount / best / 1e9


def _version(package: str) -> str | None:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None
