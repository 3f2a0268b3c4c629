"""A dialect's arithmetic inside compiled kernels: the very functions that NumPy runs on arrays, run on numbers.

Such a function is written once, of ``np.float32(…)``, ``np.rint``, ``np.minimum``, `fma` and plain operators, which
mean the same of an array and of a number in it. A kernel is built around it and applies it to each element while that
is in a register; the compiler turns the loop over elements into vector instructions.

numba keeps compiled kernels on disk and notices when the kernel's own file changes, but not when such a function does:
so kernels carry a `fingerprint` of it, with which the old ones are not found any more.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from numba import extending, types

from minquant.kernels import simd
from minquant.kernels.fma import fma

__all__ = ["fingerprint", "prepare"]


@simd.intrinsic
def _fused_multiply_add(context: Any, a: Any, b: Any, c: Any) -> Any:
    """The processor's own, or the mathematical library's where it has none: rounded once, too."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), code


@extending.overload(fma, strict=False)  # strict would want the annotations, too
def _fma(a: Any, b: Any, c: Any) -> Callable[..., Any]:
    return lambda a, b, c: _fused_multiply_add(np.float32(a), np.float32(b), np.float32(c))


@cache
def prepare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, which kernels can call from now on, and the functions that it calls."""
    for other in _called(function):
        prepare(other)
    return extending.register_jitable(function)


@cache
def fingerprint(*functions: Callable[..., Any]) -> int:
    """A number that changes with their code, with that of the functions they call, and with ``simd*.py``."""
    instructions = b"".join(path.read_bytes() for path in sorted(Path(simd.__file__).parent.glob("simd*.py")))
    return zlib.crc32(instructions + "".join(map(_told, functions)).encode())


def _told(function: Any) -> str:
    """Everything that decides what a function computes, as text."""
    code: CodeType = function.__code__
    numbers = [(name, value) for name, value in _named(function) if isinstance(value, int | float | np.generic)]
    return f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}{numbers!r}" + "".join(map(_told, _called(function)))


def _called(function: Any) -> list[FunctionType]:
    """The plain functions that it names; `fma` compiles to an instruction."""
    return [value for _, value in _named(function) if isinstance(value, FunctionType) and value is not fma]


def _named(function: Any) -> Iterator[tuple[str, Any]]:
    globals_ = function.__globals__
    return ((name, globals_[name]) for name in function.__code__.co_names if name in globals_)
