"""Integer kernels: exact, and the only place where speed matters more than plainness.

``reference.py`` is the specification, in NumPy. Every other backend returns the same integers, bit for bit.
"""

from __future__ import annotations

import os
from importlib import import_module

import numpy as np

from minquant.kernels.isa import Isa, chosen
from minquant.kernels.packed import Packed

__all__ = ["Packed", "column_sums", "instruction", "int8_matmul", "max_k", "pack_weight", "runs_compiled"]

_MODULES = {"numpy": "minquant.kernels.reference", "numba": "minquant.kernels.cpu", "cuda": "minquant.kernels.cuda"}
_INT32_MAX = 2**31 - 1
_LARGEST_PRODUCT = {np.dtype(np.uint8): 255 * 128, np.dtype(np.int8): 128 * 128}
_MAX_K = {dtype: _INT32_MAX // product for dtype, product in _LARGEST_PRODUCT.items()}
_INT8 = np.dtype(np.int8)


def int8_matmul(a: np.ndarray, b: np.ndarray | Packed, backend: str = "auto") -> np.ndarray:
    """``acc[m, n] = Σ_k a[m, k] · b[k, n]``, exact in int32.

    Args:
        a: ``(M, K)`` int8 or uint8, any strides.
        b: ``(K, N)`` int8, any strides; or what `pack_weight` made of it.
        backend: ``"numpy"`` (the specification), ``"numba"`` (compiled, in the processor's dot-product instruction;
            ``MINQUANT_ISA`` forces one, ``MINQUANT_NUM_THREADS`` says in how many threads), ``"cuda"`` (a GPU, through
            torch; the operands travel there and the result back) or ``"auto"``: numba, unless the environment variable
            ``MINQUANT_BACKEND`` names another.

    Returns:
        ``(M, N)`` int32, C-contiguous. Zero-size operands are allowed; K = 0 gives zeros.

    Raises:
        TypeError: an operand is not a NumPy array of the dtypes above.
        ValueError: an operand is not 2-D, the inner sizes differ, ``K > max_k(a.dtype)`` so that int32 could
            overflow, the backend does not exist, or b is packed and the backend is not numba.
        RuntimeError: the backend is cuda and there is no GPU that torch can use.

    Error bound: none, every result is exact.
    """
    _check_dtypes(a, b)
    _check_shapes(a, b)
    module = _module(backend)
    if isinstance(b, Packed) and module != _MODULES["numba"]:
        raise ValueError(f"int8_matmul: b is packed for the backend numba, got backend {backend!r}; pass b itself.")
    return import_module(module).matmul(a, b)


def pack_weight(b: np.ndarray, backend: str = "auto") -> np.ndarray | Packed:
    """A right operand for many products, in the order in which the processor reads it.

    That of a read-only array is kept as long as the array lives, so that asking again costs nothing; so the weights of
    integer layers are packed once.

    Args:
        b: ``(K, N)`` int8.
        backend: as of `int8_matmul`. Where there is nothing to gain b itself is returned.

    Raises:
        TypeError, ValueError: as `int8_matmul`.
    """
    _check_right(b)
    if b.ndim != 2:
        raise ValueError(f"pack_weight: expected b (K, N), got shape {b.shape}.")
    module = _module(backend)
    return import_module(module).pack_weight(b) if module == _MODULES["numba"] else b


def instruction() -> Isa | None:
    """The processor's instruction that layers multiply with; None where they run plain loops or another backend."""
    isa = chosen() if runs_compiled() else None
    return isa if isa and isa.name != "plain" else None


def runs_compiled() -> bool:
    """Whether layers run the kernels that are compiled for this processor, and no other backend."""
    return _module("auto") == _MODULES["numba"]


def column_sums(b: np.ndarray | Packed) -> np.ndarray:
    """``Σ_k b[k, n]``, int32 (N,); packing has added it up already."""
    return b.sums[: b.shape[1]] if isinstance(b, Packed) else b.sum(axis=0, dtype=np.int32)


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


def _check_dtypes(a: np.ndarray, b: np.ndarray | Packed) -> None:
    _check_array("a", a)
    if not isinstance(b, Packed):
        _check_right(b)
    if a.dtype not in _MAX_K:
        raise TypeError(
            f"int8_matmul: a must be int8 or uint8, got {a.dtype}; quantize it first, "
            "or use .astype(np.int8) if its values are already in -128..127."
        )


def _check_array(name: str, operand: np.ndarray) -> None:
    if not isinstance(operand, np.ndarray):
        raise TypeError(
            f"int8_matmul: {name} must be a NumPy array, got {type(operand).__name__}; "
            "pass integers such as qtensor.int_repr()."
        )


def _check_right(b: np.ndarray) -> None:
    _check_array("b", b)
    if b.dtype != _INT8:
        raise TypeError(
            f"int8_matmul: b must be int8, got {b.dtype}; quantize the weight to a signed grid "
            "(for uint8 values subtract 128 from them and from their zero point)."
        )


def _check_shapes(a: np.ndarray, b: np.ndarray | Packed) -> None:
    if a.ndim != 2 or len(b.shape) != 2:
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


def _module(backend: str) -> str:
    origin = "backend"
    if backend == "auto":
        backend = os.environ.get("MINQUANT_BACKEND") or "numba"
        origin = "environment variable MINQUANT_BACKEND"
    if backend not in _MODULES:
        names = ", ".join(repr(name) for name in _MODULES)
        also = "" if origin.startswith("env") else " or 'auto'"
        raise ValueError(f"int8_matmul: {origin} {backend!r} does not exist; choose one of {names}{also}.")
    return _MODULES[backend]
