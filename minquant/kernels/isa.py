"""Which instruction of the processor multiplies and adds the integers, and the shape of the work around it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

__all__ = ["ISAS", "Isa", "available", "chosen"]


@dataclass(frozen=True)
class Isa:
    """One way to add products of int8 values, exactly, in int32.

    Args:
        name: as ``MINQUANT_ISA`` has it.
        features: of the processor, by LLVM's names; all are needed.
        group: values of K that one instruction multiplies and adds into each int32.
        lanes: int32 numbers in a vector.
        vectors: vectors that a tile of the result is wide.
        rows: rows that it is high: as many as the registers hold, beside the operands.
        operand: the dtype in which the left operand enters the instruction. One of another sign is shifted by 128, and
            the shift taken out again (see `minquant.kernels.packing`).
    """

    name: str
    features: tuple[str, ...]
    group: int
    lanes: int
    vectors: int
    rows: int
    operand: str

    @cached_property
    def place(self) -> int:
        """Where it stands in `ISAS`: kernels are compiled for a number."""
        return ISAS.index(self)

    @cached_property
    def columns(self) -> int:
        """Columns of a tile, and of a panel of the packed right operand."""
        return self.lanes * self.vectors

    @cached_property
    def operand_dtype(self) -> np.dtype:
        """The left operand's dtype inside."""
        return np.dtype(self.operand)

    def shift(self, dtype: np.dtype) -> int:
        """What is added to a left operand of another sign, so that it fits: see `minquant.kernels.packing`."""
        if self.operand_dtype.itemsize > 1 or dtype == self.operand_dtype:
            return 0
        return 128 if self.operand_dtype == np.uint8 else -128


ISAS = (
    Isa("avx512vnni", ("avx512f", "avx512vnni"), group=4, lanes=16, vectors=4, rows=6, operand="uint8"),
    Isa("avxvnni", ("avx2", "avxvnni"), group=4, lanes=8, vectors=2, rows=6, operand="uint8"),
    Isa("avx2", ("avx2",), group=2, lanes=8, vectors=2, rows=6, operand="int16"),
    Isa("neon", ("neon", "dotprod"), group=4, lanes=4, vectors=4, rows=6, operand="int8"),
    Isa("plain", (), group=1, lanes=4, vectors=2, rows=4, operand="int8"),
)
"""The best first. "avx2" has no instruction for int8: it widens to int16, where no sum of two products saturates."""


@cache
def available() -> tuple[Isa, ...]:
    """Those that this processor has, the best first."""
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return tuple(isa for isa in ISAS if all(features.get(name, False) for name in isa.features))


def chosen() -> Isa:
    """The one to use: the best that there is, or what ``MINQUANT_ISA`` says.

    Raises:
        ValueError: MINQUANT_ISA names none, or one that this processor lacks.
    """
    wish = os.environ.get("MINQUANT_ISA")
    if not wish:
        return available()[0]
    for isa in available():
        if isa.name == wish:
            return isa
    names, there = (", ".join(isa.name for isa in isas) for isas in (ISAS, available()))
    if wish in names.split(", "):
        raise ValueError(f"MINQUANT_ISA={wish}: this processor does not have it; it has {there}")
    raise ValueError(f"MINQUANT_ISA={wish} does not exist; choose one of {names}")
