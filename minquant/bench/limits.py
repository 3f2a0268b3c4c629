"""What the processor can do at most: dot products in registers, and bytes out of its caches or its memory.

A matrix product cannot take less time than its dot products, nor less than the reading of its operands: the larger of
the two is its limit, ``max(operations / peak, bytes / bandwidth)``, the roofline turned upside down. Both are measured,
like any contestant: the instruction in a loop that touches no memory, and the reading of as many bytes, over and over,
so that they come out of the cache from which the operands would come.

Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from minquant.kernels.isa import ISAS, Isa
from minquant.kernels.simd import DOT, intrinsic, load_tile, store_tile
from minquant.kernels.threads import WORTH_A_THREAD, in_parts, thread_count

__all__ = ["Probe", "dot_probe", "dots", "read_probe"]

STEPS = 200_000
READ = 4 * 2**20
"""Steps of the loop, and bytes read, in one call at least."""


@dataclass(frozen=True)
class Probe:
    """A call, and how much it does: operations, or bytes."""

    call: Callable[[], object]
    amount: int


# ---- the instruction -------------------------------------------------------------------------------------------------


@intrinsic
def dots(context: Any, isa: Any, tile: Any, x: Any, y: Any) -> Any:
    """``dots(isa, tile, x, y)``: the tile plus a dot product of x and y in each of its vectors; `isa` as in `simd`."""
    if not isinstance(isa, types.IntegerLiteral):
        return None
    kind = ISAS[isa.literal_value]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, old, x, y = arguments
        return cgutils.pack_array(builder, dot_each(builder, kind, cgutils.unpack_tuple(builder, old), x, y))

    return tile(isa, tile, x, y), code


def dot_each(builder: Any, isa: Isa, tile: list[Any], x: Any, y: Any) -> list[Any]:
    """Each vector of the tile plus its own dot product.

    No instruction stands between them, but the compiler is told that one changes x: otherwise it would compute the
    products that do not depend on the tile once, before the loop.
    """
    constraint = "=w,0" if isa.name == "neon" else "=x,0"
    right = builder.bitcast(y, ir.VectorType(ir.IntType(16), 2 * isa.lanes)) if isa.name == "avx2" else y
    new = []
    for acc in tile:
        x = builder.asm(ir.FunctionType(x.type, [x.type]), "", constraint, (x,), True)
        new.append(DOT[isa.name](builder, isa, acc, x, right))
    return new


@cache
def _dot_loop(place: int, rows: int) -> Callable[..., None]:
    columns = ISAS[place].columns

    @njit(cache=True, nogil=True)
    def loop(steps: int, values: np.ndarray, out: np.ndarray) -> None:
        tile, x = load_tile(place, rows, values.ctypes.data, 0), load_tile(place, 1, values.ctypes.data, 0)
        for _ in range(steps):
            tile = dots(place, tile, x[0], x[1])
        store_tile(place, tile, out.ctypes.data, 4 * columns)

    return loop


def dot_probe(isa: Isa) -> Probe | None:
    """The instruction on a tile as large as the kernel's, in every thread; None where there is no instruction."""
    if isa.name not in DOT:
        return None
    loop, threads = _dot_loop(isa.place, isa.rows), thread_count()
    values = np.arange(isa.columns, dtype=np.int32)

    def work(first: int, last: int) -> None:
        loop(STEPS * (last - first), values, np.empty((isa.rows, isa.columns), np.int32))

    each = 2 * isa.rows * isa.columns * isa.group * STEPS
    return Probe(lambda: in_parts(work, threads, each * threads), each * threads)


# ---- memory ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _read(words: np.ndarray, times: int) -> int:
    """Reads all words, so many times; the sum depends on which time it is, or the compiler would read them once."""
    total = 0
    for time in range(times):
        for i in range(len(words)):
            total += words[i] ^ time
    return total


def read_probe(size: int) -> Probe:
    """The reading of `size` bytes, over and over, each thread its part."""
    words = np.ones(-(-size // 8), np.int64)
    times = -(-READ // words.nbytes)

    def work(first: int, last: int) -> None:
        _read(words[first:last], times)

    worth = WORTH_A_THREAD * thread_count()
    return Probe(lambda: in_parts(work, len(words), worth), times * words.nbytes)
