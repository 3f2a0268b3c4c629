"""Kernels are compiled once, whoever comes first, and found on disk from then on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minquant.bench.first_call import first_call

PRODUCT = """
from numba.core import event
compiled = []

class Listener(event.Listener):
    def on_start(self, happened):
        compiled.append(happened)

    def on_end(self, happened):
        pass

event.register("numba:compile", Listener())
import numpy as np
from minquant.kernels import int8_matmul
a, b = np.arange(70, dtype=np.uint8).reshape(7, 10), np.arange(-60, 60, dtype=np.int8).reshape(10, 12)
assert (int8_matmul(a, b, "numba") == a.astype(int) @ b.astype(int)).all()
print(len(compiled))
"""


def start(cache: Path) -> subprocess.Popen:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", PRODUCT], env=environment, stdout=pipe, stderr=pipe, text=True)


def count(process: subprocess.Popen) -> int:
    """How many functions it compiled."""
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return int(printed)


def test_processes_that_compile_at_the_same_time_and_one_that_need_not(tmp_path):
    together = [start(tmp_path) for _ in range(3)]
    assert max([count(process) for process in together]) > 0
    assert count(start(tmp_path)) == 0


def test_how_long_it_takes(tmp_path):
    """Of the figures, 3 and 0.6 s, a busy machine may need a few times as much; that the second is quicker, never."""
    new, kept = first_call(str(tmp_path)), first_call(str(tmp_path))
    assert kept < new < 30


def test_a_process_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("MINQUANT_ISA", "none")
    with pytest.raises(RuntimeError, match="MINQUANT_ISA=none does not exist"):
        first_call(str(tmp_path))
