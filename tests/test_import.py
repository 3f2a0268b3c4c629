from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROBE = """
import json, sys, time
start = time.process_time()
import numpy.random
numpys = time.process_time() - start
import minquant
ours = time.process_time() - start - numpys
minquant.nn.Linear(2, 2)(minquant.rand(1, 2)).sum().backward()
print(json.dumps([ours / numpys, sorted({name.split(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "torchao", "numba", "scipy", "matplotlib", "rich", "sklearn", "safetensors"}


def probe() -> tuple[float, list[str]]:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_minquant_is_cheap_and_loads_no_large_library() -> None:
    share, modules = min(probe() for _ in range(5))  # the first one compiles, others may be disturbed
    assert HEAVY & set(modules) == set()
    assert share <= 0.6  # of the processor time that importing NumPy takes
