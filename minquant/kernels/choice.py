"""Whether training runs compiled kernels or NumPy: the results are the same, bit for bit, so only time decides."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

__all__ = ["compiled"]

WORTH_LOADING = 1_000_000
"""Elements for which NumPy takes so long that loading numba, half a second, begins to pay."""

_LOADED: dict[str, Any] = {}


def compiled(name: str, elements: int) -> Any:
    """The module of that name beside this one, if work on that many elements should go to its kernels, else None.

    It does unless ``MINQUANT_BACKEND`` is "numpy", but small work does not load numba: a short script is through before
    numba is there. Where something else has loaded it, small work is faster compiled.
    """
    if os.environ.get("MINQUANT_BACKEND") == "numpy":
        return None
    if name not in _LOADED and (elements >= WORTH_LOADING or "numba" in sys.modules):
        _LOADED[name] = import_module(f"minquant.kernels.{name}")
    return _LOADED.get(name)
