"""How long the first product of a process takes: ``python -m minquant.bench.first_call``.

Each in a process of its own, numba's import included: with nothing compiled yet, and with kernels found on disk. numba
imports SciPy where that is installed, which minquant does not need: so once with it and once without.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

__all__ = ["first_call"]

RUNS = 3
ONE = """
import sys, time
if sys.argv[1] == "without": sys.modules["scipy"] = None
import numpy as np
from minquant.kernels import int8_matmul
a, b = np.ones((64, 64), np.uint8), np.ones((64, 64), np.int8)
started = time.perf_counter()
product = int8_matmul(a, b, "numba")
print(time.perf_counter() - started)
assert (product == 64).all()
"""


def first_call(cache: str, scipy: bool = True) -> float:
    """Seconds of a process's first product, with numba's cache in that folder.

    Raises:
        RuntimeError: the process failed; the message is its own.
    """
    command = [sys.executable, "-c", ONE, "with" if scipy else "without"]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the first product of a process failed:\n{done.stderr}")
    return float(done.stdout)


def main() -> None:
    """Prints the medians."""
    print(f"seconds of a process's first int8_matmul, median of {RUNS}:")
    for scipy in (True, False):
        new, kept = [], []
        for _ in range(RUNS):
            with tempfile.TemporaryDirectory() as cache:
                new.append(first_call(cache, scipy))
                kept.append(first_call(cache, scipy))
        which = "as installed" if scipy else "without SciPy"
        print(f"{which}: {statistics.median(new):.2f} nothing compiled yet, {statistics.median(kept):.2f} later")


if __name__ == "__main__":
    main()
