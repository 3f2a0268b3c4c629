"""The integer product, packed or not, beside every library's, and float products of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minquant.bench.job import Job, WrongResultError, checked
from minquant.bench.operation import Operation, Peer, Shape, Work
from minquant.bench.operations.int8_matmul_peers import KEEPING, NUMPY, WHOLE
from minquant.bench.operations.products import Operands, ends, operands
from minquant.bench.threads import environment, limited
from minquant.kernels import cpu, int8_matmul
from minquant.kernels.isa import available

__all__ = ["OPERATIONS", "saturating"]

LEFT = ("uint8", "int8")
AXES = "M×K×N"
SHAPES: dict[str, tuple[Shape, ...]] = {
    "square": tuple((n, n, n) for n in (256, 512, 1024, 2048)),
    "few rows": tuple((m, 4096, 4096) for m in (1, 4, 16, 64)),
    "a batch": ((128, 1024, 1024),),
    "transformer": ((128, 768, 768), (128, 768, 3072), (128, 3072, 768)),
    "odd": ((255, 1023, 513), (127, 129, 131), (3, 5, 7), (1, 1, 1)),
}


def work(shape: Shape) -> Work:
    """``2·M·K·N`` operations; ``M·K + K·N`` int8 values and ``M·N`` int32."""
    M, K, N = shape
    return Work(2 * M * K * N, M * K + K * N + 4 * M * N)


# ---- minquant --------------------------------------------------------------------------------------------------------


def packed(data: Operands, left: str) -> Job:
    """The right operand packed once, as a layer keeps its weight."""
    given, b = data.left(left), cpu.pack_weight(data.b)
    return Job(lambda: cpu.matmul(given.a, b), _same, given.product)


def unpacked(data: Operands, left: str) -> Job:
    """The packing inside the call."""
    given = data.left(left)
    return Job(lambda: int8_matmul(given.a, given.b, "numba"), _same, given.product)


def without_vnni(data: Operands, left: str) -> Job:
    """`packed`, in the instructions of processors that have no dot product of int8."""
    with environment("MINQUANT_ISA", "avx2"):
        return packed(data, left)


def _same(result: Any) -> Any:
    return result


def _no_avx2() -> str:
    return "" if any(isa.name == "avx2" for isa in available()) else "this processor has no AVX2"


OPERATIONS = (
    Operation("int8_matmul packed", AXES, SHAPES, operands, LEFT, packed, (*KEEPING, *WHOLE), work),
    Operation("int8_matmul", AXES, SHAPES, operands, LEFT, unpacked, WHOLE, work),
    Operation(
        "int8_matmul MINQUANT_ISA=avx2",
        AXES,
        {"square": ((1024, 1024, 1024),)},
        operands,
        LEFT[:1],
        without_vnni,
        (NUMPY,),
        work,
        obstacle=_no_avx2,
    ),
)


# ---- who saturates ---------------------------------------------------------------------------------------------------


def saturating(peers: Sequence[Peer]) -> list[str]:
    """Those that add products in pairs in int16 on this processor, so that with larger weights they would be wrong."""
    found = []
    with limited(1):
        for peer in peers:
            if peer not in OPERATIONS[0].peers or not peer.integers or not peer.variant:
                continue
            try:
                checked(peer.name, peer.prepare(ends(peer.variant), 1))
            except WrongResultError:
                found.append(peer.name)
            except Exception:  # whatever it is, it is reported of every case
                continue
    return found
