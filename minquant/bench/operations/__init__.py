"""Everything that `minquant bench` measures, a file for each kind of thing.

To measure more: a module with ``OPERATIONS``, its name in `MODULES`, and, if there is a figure to reach, a line in
`minquant.bench.figures`.
"""

from __future__ import annotations

from importlib import import_module

from minquant.bench.operation import Operation

__all__ = ["every_operation"]

MODULES = (
    "minquant.bench.operations.int8_matmul",
    "minquant.bench.operations.dynamic_linear",
    "minquant.bench.operations.static_linear",
    "minquant.bench.operations.static_conv",
    "minquant.bench.operations.int4_linear",
    "minquant.bench.operations.fake_quantize",
    "minquant.bench.operations.qat_step",
    "minquant.bench.operations.gpu",
)


def every_operation() -> tuple[Operation, ...]:
    """All of them, those with an obstacle too."""
    return tuple(operation for name in MODULES for operation in import_module(name).OPERATIONS)
