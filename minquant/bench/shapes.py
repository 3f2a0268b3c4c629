"""What is measured: operations, shapes and numbers of threads."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["OPS", "PACKED", "SHAPES", "UNPACKED", "Case", "Shape", "select"]

Shape = tuple[int, int, int]
"""M, K, N of ``(M, K) @ (K, N) -> (M, N)``."""

PACKED, UNPACKED = "int8_matmul packed", "int8_matmul"
OPS = (PACKED, UNPACKED)
"""With the right operand packed once, as a layer keeps its weight, and with the packing inside the call."""

SHAPES: dict[str, tuple[Shape, ...]] = {
    "square": tuple((n, n, n) for n in (256, 512, 1024, 2048)),
    "few rows": tuple((m, 4096, 4096) for m in (1, 4, 16, 64)),
    "a batch": ((128, 1024, 1024),),
    "odd": ((255, 1023, 513), (127, 129, 131), (3, 5, 7), (1, 1, 1)),
}
"""By group. A shape comes after those from which its duration can be told (`minquant.bench.run`)."""


@dataclass(frozen=True)
class Case:
    """One operation on one shape with so many threads."""

    op: str
    group: str
    shape: Shape
    threads: int

    @property
    def name(self) -> str:
        """What ``--only`` is compared with."""
        return f"{self.op} {'x'.join(map(str, self.shape))}"

    @property
    def operations(self) -> int:
        """Multiplications and additions: ``2·M·K·N``."""
        M, K, N = self.shape
        return 2 * M * K * N

    @property
    def moved(self) -> int:
        """Bytes that must be read or written once: ``M·K + K·N`` int8 values and ``M·N`` int32."""
        M, K, N = self.shape
        return M * K + K * N + 4 * M * N


def select(pattern: str | None, threads: Sequence[int]) -> list[Case]:
    """The cases whose name holds the pattern, in which ``*`` and ``?`` stand for anything.

    Raises:
        ValueError: there is none.
    """
    shapes = [(group, shape) for group, members in SHAPES.items() for shape in members]
    every = [Case(op, group, shape, t) for (group, shape), op, t in itertools.product(shapes, OPS, threads)]
    chosen = [case for case in every if fnmatch.fnmatchcase(case.name, f"*{pattern or ''}*")]
    if not chosen:
        names = ", ".join("x".join(map(str, shape)) for _, shape in shapes)
        raise ValueError(
            f"--only {pattern}: no case has such a name; they are {' and '.join(map(repr, OPS))}, each with a shape, "
            f"as in '{every[0].name}'; the shapes are {names}"
        )
    return chosen
