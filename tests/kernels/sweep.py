"""Every shape, dtype and stride through the integer kernels, with every array flush against a guard page.

    python -m tests.kernels.sweep [--seconds N] [--emulate ISA]    # all shapes 0…70, then random larger ones

Kernels work on raw addresses, where a byte too far would pass unnoticed. Here it does not: the pages before and behind
each array may not be touched, and the process dies if they are. ``MINQUANT_ISA`` chooses the instruction. One that the
processor lacks can be emulated: its kernel runs, with its packing, tiles, shifts and edges, and only the instruction
itself is put together from others. (Give such a process a ``NUMBA_CACHE_DIR`` of its own.)
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from llvmlite import ir

from minquant.kernels import cpu, isa, reference, simd
from minquant.kernels.isa import ISAS, chosen

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
KEPT = 64
LARGEST = 70


class Guarded:
    """Arrays that end (or begin) where a forbidden page begins (or ends)."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []
        self.flush_with_the_end = True

    def array(self, shape, dtype) -> np.ndarray:
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        pages = -(-size // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (0, pages + 1):
            if LIBC.mprotect(ctypes.c_void_p(address + page * PAGE), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.maps = [*self.maps[-KEPT:], memory]
        first = PAGE + (pages * PAGE - size if self.flush_with_the_end else 0)
        return np.frombuffer(memory, np.uint8, size, first).view(dtype).reshape(shape)

    def zeros(self, shape, dtype=float) -> np.ndarray:
        return self.array(shape, dtype)

    def empty(self, shape, dtype=float) -> np.ndarray:
        filled = self.array(shape, dtype)
        filled.reshape(-1).view(np.uint8)[:] = 0xA5  # so that what is never written shows
        return filled

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """While it lasts, NumPy's arrays are such arrays."""
        empty, zeros = np.empty, np.zeros
        np.empty, np.zeros = self.empty, self.zeros
        try:
            yield
        finally:
            np.empty, np.zeros = empty, zeros


def shapes(rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """All of 0…70 in each of two sizes, the third at random; then larger ones, for ever."""
    for i, j in itertools.product(range(LARGEST + 1), repeat=2):
        other = int(rng.integers(0, LARGEST + 1))
        yield from {(i, j, other), (i, other, j), (other, i, j)}
    while True:
        m, k, n = (int(size) for size in rng.integers(1, 400, 3))
        yield m, k, n


def operand(guarded: Guarded, rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    """Random integers, flush against a guard page: plain, transposed, sliced, backwards or at an odd address."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    layout = rng.choice(["plain", "plain", "transposed", "sliced", "backwards"])
    if layout == "transposed":
        held = guarded.array(shape[::-1], dtype)
        held[...] = values.T
        return held.T
    if layout == "sliced":
        held = guarded.array((shape[0], 3 * shape[1]), dtype)
        held[:, 2::3] = values
        return held[:, 2::3]
    held = guarded.array(shape, dtype)
    if layout == "backwards":
        held[::-1, ::-1] = values
        return held[::-1, ::-1]
    held[...] = values
    return held


def warm_up() -> None:
    """Compiles every kernel, before numpy's allocators are replaced."""
    kind = chosen()
    b = np.ones((5, 3), np.int8)
    cpu.matmul(np.ones((2, 5), np.uint8), b)
    for rows in range(1, kind.rows + 1 if kind.name != "plain" else 1):
        packed = cpu.pack_weight(b)
        for dtype in (np.uint8, np.int8):
            a = np.ones((rows, 5), dtype)
            entered, _ = cpu.enter(a, kind, rows)
            cpu.multiply(entered, packed, 0, rows, cpu.room_for_sums(rows, packed))
    cpu.matmul(np.asfortranarray(np.ones((2, 5), np.int8)), np.asfortranarray(b)[::-1])


def sweep(seconds: float, seed: int = 0) -> int:
    """How many products were compared; raises AssertionError where one is wrong."""
    warm_up()
    rng, guarded, until = np.random.default_rng(seed), Guarded(), time.monotonic() + seconds
    done = 0
    for m, k, n in shapes(rng):
        if time.monotonic() > until:
            break
        guarded.flush_with_the_end = bool(done % 4)
        dtype = ("uint8", "int8")[done % 2]
        a, b = operand(guarded, rng, dtype, (m, k)), operand(guarded, rng, "int8", (k, n))
        with guarded.allocating():
            got = cpu.matmul(a, cpu.pack_weight(b) if done % 3 else b)
        expected = reference.matmul(a, b)
        assert got.shape == expected.shape and np.array_equal(got, expected), (m, k, n, dtype)
        done += 1
    return done


def emulate(name: str) -> None:
    """Has kernels use an instruction of four int8 products a lane that the processor lacks."""
    kind = next(kind for kind in ISAS if kind.name == name)
    extend = "zext" if kind.operand == "uint8" else "sext"

    def dot(builder, kind, acc, a, b):
        count = 4 * kind.lanes
        int8, wide = ir.VectorType(ir.IntType(8), count), ir.VectorType(ir.IntType(32), count)
        left = getattr(builder, extend)(builder.bitcast(a, int8), wide)
        products = builder.mul(left, builder.sext(builder.bitcast(b, int8), wide))
        for place in range(4):
            of_each_lane = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), list(range(place, count, 4)))
            acc = builder.add(acc, builder.shuffle_vector(products, products, of_each_lane))
        return acc

    simd.DOT[name] = dot
    isa.available = lambda: (kind,)


def main(sweep: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser | None = None) -> None:
    """A sweep as a command."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--emulate", metavar="ISA", choices=["avx512vnni", "avxvnni", "neon"])
    arguments = parser.parse_args()
    if arguments.emulate:
        emulate(arguments.emulate)
    print(f"{chosen().name}: {sweep(arguments):,} products, every one right, no byte out of place")


if __name__ == "__main__":
    main(lambda arguments: sweep(arguments.seconds))
