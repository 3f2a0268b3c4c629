"""Operations with no weight of their own between two grids: activations, average pooling, norms, sums, joins.

An activation on integers is a table of at most 256 entries, and a sum of two tensors has two scales to reconcile; the
plain rule for both is to compute in real values, ``quantize(f(dequantize(x), …))``, which is also what a model that is
prepared for training computes, bit for bit. Norms have a further reason to stay in float: they divide by a statistic
of the input itself, so that their integers would have no fixed scale.

Source: torch.ao.nn.quantized (Sigmoid, Softmax, LayerNorm, BatchNorm2d, QFunctional), torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minquant.functional.pool import adaptive_sizes
from minquant.functional.windows import per_axis
from minquant.nn import (
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    LayerNorm,
    Module,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)

from .dialects import Dialect, get_dialect
from .qtensor import QTensor
from .spec import PerTensor, QParams, QSpec
from .weighted import at, check_output_grid

__all__ = [
    "BETWEEN_GRIDS",
    "NORMS",
    "POOLS",
    "BetweenGrids",
    "QFunctional",
    "fixed_output",
]

NORMS = (LayerNorm, RMSNorm, BatchNorm1d, BatchNorm2d)
POOLS = (AvgPool2d, AdaptiveAvgPool2d)
BETWEEN_GRIDS = (*POOLS, Sigmoid, Tanh, Softmax, GELU, SiLU, *NORMS)

FIXED_RANGES: dict[type[Module], tuple[int, int]] = {Sigmoid: (0, 1), Softmax: (0, 1), Tanh: (-1, 1)}
"""Outputs whose range is known without data."""

Rule = Callable[[Dialect, Any, QTensor, QParams], QTensor]


def _adaptive_avg_pool2d(dialect: Dialect, pool: Any, x: QTensor, output: QParams) -> QTensor:
    sizes = adaptive_sizes(pool.output_size, "AdaptiveAvgPool2d")
    height, width = (n if size is None else size for n, size in zip(x.shape[-2:], sizes, strict=True))
    return dialect.adaptive_avg_pool2d(x, (height, width), output)


def _avg_pool2d(dialect: Dialect, pool: Any, x: QTensor, output: QParams) -> QTensor:
    kernel, stride, padding = (
        per_axis(getattr(pool, name), 2, 0, f"AvgPool2d: {name}") for name in ("kernel_size", "stride", "padding")
    )
    return dialect.avg_pool2d(x, kernel, stride, padding, output)  # type: ignore[arg-type]


RULES: dict[type[Module], Rule] = {
    AvgPool2d: _avg_pool2d,
    AdaptiveAvgPool2d: _adaptive_avg_pool2d,
    Sigmoid: lambda dialect, module, x, output: dialect.sigmoid(x, output),
    Tanh: lambda dialect, module, x, output: dialect.tanh(x, output),
    Softmax: lambda dialect, module, x, output: dialect.softmax(x, module.dim, output),
}
"""What an engine may have a way of its own for."""


class BetweenGrids(Module):
    """What a module without weights, or a norm, becomes: integers in, integers out, real values in between.

    Outside the quantized part of a model, where real values come, it is the float module that it was.

    Args:
        module: the float module.
        output: the grid of the result; None where the result stays on the input's grid (pooling in torch's engines).
        backend: the dialect.
    """

    def __init__(self, module: Module, output: QParams | None, backend: str) -> None:
        super().__init__()
        if output is not None:
            check_output_grid(output, type(self).__name__)
        self.module = module
        self.output = output
        self.backend = backend
        self.path = ""

    def forward(self, x: Any) -> Any:
        if not isinstance(x, QTensor):
            return self.module(x)
        dialect, output = get_dialect(self.backend), x.qparams if self.output is None else self.output
        rule = RULES.get(type(self.module))
        return rule(dialect, self.module, x, output) if rule else dialect.in_real_values(self.module, (x,), output)

    def extra_repr(self) -> str:
        return f"output={self.output}, backend={self.backend!r}"


class QFunctional(Module):
    """What a `FloatFunctional` becomes: the same operations on quantized tensors, with one grid for the results.

    Args:
        output: that grid.
        backend: the dialect.

    Raises (in every operation):
        TypeError: some operands are quantized tensors and some are not.

    Source: torch.ao.nn.quantized.QFunctional, torch 2.13.
    """

    def __init__(self, output: QParams, backend: str) -> None:
        super().__init__()
        check_output_grid(output, type(self).__name__)
        self.output = output
        self.backend = backend
        self.path = ""

    def add(self, x: QTensor, y: QTensor) -> QTensor:
        """X + y."""
        return self._dialect(x, y).add(x, y, self.output, False)

    def add_relu(self, x: QTensor, y: QTensor) -> QTensor:
        """max(x + y, 0)."""
        return self._dialect(x, y).add(x, y, self.output, True)

    def mul(self, x: QTensor, y: QTensor) -> QTensor:
        """X · y."""
        return self._dialect(x, y).mul(x, y, self.output, False)

    def add_scalar(self, x: QTensor, y: float) -> QTensor:
        """X + y of a number y."""
        return self._dialect(x).add_scalar(x, y, self.output)

    def mul_scalar(self, x: QTensor, y: float) -> QTensor:
        """X · y of a number y."""
        return self._dialect(x).mul_scalar(x, y, self.output)

    def matmul(self, x: QTensor, y: QTensor) -> QTensor:
        """X @ y over the last two axes."""
        return self._dialect(x, y).matmul(x, y, self.output)

    def cat(self, x: Sequence[QTensor], dim: int = 0) -> QTensor:
        """The tensors of x joined along axis dim."""
        return self._dialect(*x).cat(x, dim, self.output)

    def _dialect(self, *operands: Any) -> Dialect:
        for operand in operands:
            if not isinstance(operand, QTensor):
                raise TypeError(
                    f"QFunctional{at(self)}: every operand must be a quantized tensor, got {type(operand).__name__}; "
                    "put a QuantStub before it"
                )
            if not isinstance(operand.qparams.spec.granularity, PerTensor):
                raise TypeError(f"QFunctional{at(self)}: an operand needs one scale, got {operand.qparams.spec}")
        return get_dialect(self.backend)

    def extra_repr(self) -> str:
        return f"output={self.output}, backend={self.backend!r}"


def fixed_output(module: Module, spec: QSpec) -> dict[str, Any] | None:
    """The `FixedQParamsObserver`'s arguments for an output whose range is known without data; None for all others.

    ``s = (high - low) / (qmax - qmin + 1)``: for 0…1 on 8 bits 1/256, for -1…1 2/256 with zero point 128, so that the
    upper end itself is one step off the grid.

    Args:
        module: the module whose output it is.
        spec: the integers that its qconfig asks for.

    Source: torch.ao.quantization.observer.default_fixed_qparams_range_0to1_observer and _neg1to1_, torch 2.13.
    """
    if type(module) not in FIXED_RANGES:
        return None
    low, high = FIXED_RANGES[type(module)]
    scale = (high - low) / (spec.qmax - spec.qmin + 1)
    return {
        "scale": scale,
        "zero_point": spec.qmin - int(np.rint(low / scale)),
        "dtype": "qint8" if spec.signed else "quint8",
        "quant_min": spec.qmin,
        "quant_max": spec.qmax,
    }
