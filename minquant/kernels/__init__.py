"""Integer kernels: exact, and the only place where speed matters more than plainness.

``reference.py`` is the specification, in NumPy. Every other backend returns the same integers, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

import numpy as np

__all__ = ["int8_matmul", "max_k"]

_MODULES = {"numpy": "minquant.kernels.reference", "numba": "minquant.kernels.cpu"}
_INT32_MAX = 2**31 - 1
_LARGEST_PRODUCT = {np.dtype(np.uint8): 255 * 128, np.dtype(np.int8): 128 * 128}
_MAX_K = {dtype: _INT32_MAX // product for dtype, product in _LARGEST_PRODUCT.items()}
_INT8 = np.dtype(np.int8)


def int8_matmul(a: np.ndarray, b: np.ndarray, backend: str = "auto") -> np.ndarray:
    """``acc[m, n] = Σ_k a[m, k] · b[k, n]``, exact in int32.

    Args:
        a: ``(M, K)`` int8 or uint8, any strides.
        b: ``(K, N)`` int8, any strides.
        backend: ``"numpy"`` (the specification), ``"numba"`` (compiled loops) or ``"auto"``: numba, unless
            the environment variable ``MINQUANT_BACKEND`` names another.

    Returns:
        ``(M, N)`` int32, C-contiguous. Zero-size operands are allowed; K = 0 gives zeros.

    Raises:
        TypeError: an operand is not a NumPy array of the dtypes above.
        ValueError: an operand is not 2-D, the inner sizes differ, ``K > max_k(a.dtype)`` so that int32 could
            overflow, or the backend does not exist.

    Error bound: none, every result is exact.
    """
    _check_dtypes(a, b)
    _check_shapes(a, b)
    return _implementation(backend)(a, b)


def max_k(dtype: np.dtype | type) -> int:
    """The largest K for which no sum of K products with int8 can leave int32: ``⌊(2³¹ − 1) / max|a·b|⌋``.

    ``max|a·b|`` is 255·128 for uint8 (K ≤ 65,793) and 128·128 for int8 (K ≤ 131,071).

    Raises:
        TypeError: ``dtype`` is neither int8 nor uint8.
    """
    found = np.dtype(dtype)
    if found not in _MAX_K:
        raise TypeError(f"max_k: expected int8 or uint8, got {found}.")
    return _MAX_K[found]


def _check_dtypes(a: np.ndarray, b: np.ndarray) -> None:
    for name, operand in (("a", a), ("b", b)):
        if not isinstance(operand, np.ndarray):
            raise TypeError(
                f"int8_matmul: {name} must be a NumPy array, got {type(operand).__name__}; "
                "pass integers such as qtensor.int_repr()."
            )
    if a.dtype not in _MAX_K:
        raise TypeError(
            f"int8_matmul: a must be int8 or uint8, got {a.dtype}; quantize it first, "
            "or use .astype(np.int8) if its values are already in -128..127."
        )
    if b.dtype != _INT8:
        raise TypeError(
            f"int8_matmul: b must be int8, got {b.dtype}; quantize the weight to a signed grid "
            "(for uint8 values subtract 128 from them and from their zero point)."
        )


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(
            f"int8_matmul: expected a (M, K) and b (K, N), got shapes {a.shape} and {b.shape}; "
            "reshape both operands to two dimensions."
        )
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"int8_matmul: inner sizes differ: a {a.shape} has K = {a.shape[1]}, "
            f"b {b.shape} has K = {b.shape[0]}; a weight stored as (N, K) must be passed transposed."
        )
    limit = _MAX_K[a.dtype]
    if a.shape[1] > limit:
        raise ValueError(
            f"int8_matmul: K = {a.shape[1]} could overflow the int32 accumulator: {a.dtype} by int8 is safe "
            f"up to K = {limit} and can overflow from K = {limit + 1}; "
            "split K into parts and add their results in int64."
        )


def _implementation(backend: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    origin = "backend"
    if backend == "auto":
        backend = os.environ.get("MINQUANT_BACKEND") or "numba"
        origin = "environment variable MINQUANT_BACKEND"
    if backend not in _MODULES:
        names = ", ".join(repr(name) for name in _MODULES)
        also = "" if origin.startswith("env") else " or 'auto'"
        raise ValueError(f"int8_matmul: {origin} {backend!r} does not exist; choose one of {names}{also}.")
    return import_module(_MODULES[backend]).matmul
