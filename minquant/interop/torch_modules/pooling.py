"""Average pooling of quantized images on tensors: sums of integers, and the dialect's own way to make integers of them.

What differs from engine to engine is decided by where its `avg_pool2d` stands; the arithmetic is that of
`minquant.quant.dialects.torch_pooling`, run on tensors. In real values, the plain rule, a mean is the sum in float64
rounded once, then divided: float64 holds every such sum exactly, in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.functional.pool import adaptive_sizes
from minquant.functional.windows import per_axis
from minquant.kernels.tensors import in_torch
from minquant.quant.dialects import Dialect
from minquant.quant.dialects.qnnpack_operations import QNNPACKOperations
from minquant.quant.dialects.torch_operations import TorchOperations
from minquant.quant.dialects.torch_pooling import (
    adaptive_code_in_vectors,
    code_in_vectors,
    code_left_over,
    lies_channels_last,
    planar_reciprocal,
    regions,
)
from minquant.quant.dialects.torch_rounding import whole_channels
from minquant.quant.spec import QParams

from . import quantizing, rules
from .between import BetweenGrids
from .quantized import QuantizedTensor

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "uncovered_pool"]

Pair = tuple[int, int]
Code = Callable[..., Any]


def uncovered_pool(dialect: Dialect) -> str:
    """Why the dialect's pooling is not to be had on tensors; "" if it is."""
    known = type(dialect).avg_pool2d in (*AVERAGE,) and type(dialect).adaptive_avg_pool2d in (*ADAPTIVE,)
    return "" if known else f"the way in which {dialect.name} pools is not covered"


class AvgPool2d(BetweenGrids):
    """Of an AvgPool2d. Args: see `BetweenGrids`."""

    def __init__(self, module: Any, path: str, real: torch.nn.Module) -> None:
        super().__init__(module, path, real)
        names = ("kernel_size", "stride", "padding")
        self.window = [per_axis(getattr(module.module, name), 2, 0, name) for name in names]

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """By the engine's way."""
        return AVERAGE[type(self.dialect).avg_pool2d](self.dialect, x, *self.window, self.output_of(x))


class AdaptiveAvgPool2d(BetweenGrids):
    """Of an AdaptiveAvgPool2d. Args: see `BetweenGrids`."""

    def __init__(self, module: Any, path: str, real: torch.nn.Module) -> None:
        super().__init__(module, path, real)
        self.sizes = adaptive_sizes(module.module.output_size, "AdaptiveAvgPool2d")

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """By the engine's way."""
        size = tuple(n if m is None else m for n, m in zip(x.shape[-2:], self.sizes, strict=True))
        return ADAPTIVE[type(self.dialect).adaptive_avg_pool2d](self.dialect, x, size, self.output_of(x))


# ---- in real values --------------------------------------------------------------------------------------------------


def real_average(
    dialect: Dialect, x: QuantizedTensor, kernel: Pair, stride: Pair, padding: Pair, output: QParams
) -> QuantizedTensor:
    """``quantize(f(f(Σ x̂) / n))``."""
    total = window_sums(x.dequantize().double(), kernel, stride, padding)
    return real_mean(dialect, total, kernel[0] * kernel[1], output)


def real_adaptive(dialect: Dialect, x: QuantizedTensor, size: Pair, output: QParams) -> QuantizedTensor:
    """The same of regions."""
    real = x.dequantize().double()
    parts = [
        real_mean(dialect, real[place].sum((-1, -2)), count, output).integers
        for place, count in every_region(real, size)
    ]
    return QuantizedTensor(in_places(parts, size), output)


def real_mean(dialect: Dialect, total: Tensor, count: int, output: QParams) -> QuantizedTensor:
    """Of sums in float64."""
    divisor = torch.tensor(float(count), device=total.device)  # a tensor of the device: see `minquant.kernels.tensors`
    return QuantizedTensor(quantizing.quantize(dialect, total.float() / divisor, output), output)


# ---- as torch's engines ----------------------------------------------------------------------------------------------


def torchs_average(
    dialect: Any, x: QuantizedTensor, kernel: Pair, stride: Pair, padding: Pair, output: QParams
) -> QuantizedTensor:
    """On x's own grid."""
    total = window_sums(centred(x), kernel, stride, padding)
    reciprocal = np.float32(1 / (kernel[0] * kernel[1]))
    if not lies_channels_last(tuple(x.shape), dialect.channels_last):
        return on_grid(coded(code_left_over, total, reciprocal, x), x)
    return on_grid(by_channel(dialect, code_in_vectors, total, reciprocal, x), x)


def torchs_adaptive(dialect: Any, x: QuantizedTensor, size: Pair, output: QParams) -> QuantizedTensor:
    """On x's own grid."""
    last = lies_channels_last(tuple(x.shape), dialect.channels_last)
    q = centred(x) if last else x.integers.int()
    parts = []
    for place, count in every_region(q, size):
        total = q[place].sum((-1, -2), dtype=torch.int32)[..., None, None]
        if last:
            parts.append(by_channel(dialect, adaptive_code_in_vectors, total, np.float32(1 / count), x))
        else:
            parts.append(torch.round(total.float() * float(planar_reciprocal(q[place].shape[-2:]))))
    return on_grid(in_places([part[..., 0, 0] for part in parts], size), x)


def by_channel(dialect: Any, in_vectors: Code, total: Tensor, reciprocal: np.float32, x: QuantizedTensor) -> Tensor:
    """Codes of sums (…, C, H, W): of whole vectors of channels, and of those left over."""
    whole = torch.tensor(np.array(whole_channels(tuple(total.shape), dialect.lanes))).to(total.device)
    of_both = (coded(code, total, reciprocal, x) for code in (in_vectors, code_left_over))
    return torch.where(whole, *of_both)


def coded(code: Code, total: Tensor, reciprocal: np.float32, x: QuantizedTensor) -> Tensor:
    """The dialect's function of sums, in torch."""
    terms = rules.on_device((reciprocal, np.float32(x.qparams.zero_point)), total.device)
    return in_torch(code)(total.float(), *terms)


def qnnpacks_average(
    dialect: Any, x: QuantizedTensor, kernel: Pair, stride: Pair, padding: Pair, output: QParams
) -> QuantizedTensor:
    """On x's own grid, ``rint(f(f(Σ(q - z)) · f(s / f(s·n)))) + z``."""
    scale = x.qparams.scale
    multiplier = np.float32(scale / (scale * np.float32(kernel[0] * kernel[1])))
    return on_grid(coded(code_in_vectors, window_sums(centred(x), kernel, stride, padding), multiplier, x), x)


def qnnpacks_adaptive(dialect: Any, x: QuantizedTensor, size: Pair, output: QParams) -> QuantizedTensor:
    """By average pooling where regions larger than one element tile the input, else as torch's other engines."""
    shape = tuple(x.shape[-2:])
    if shape == size or shape[0] % size[0] or shape[1] % size[1]:
        return torchs_adaptive(dialect, x, size, output)
    kernel = shape[0] // size[0], shape[1] // size[1]
    return qnnpacks_average(dialect, x, kernel, kernel, (0, 0), output)


AVERAGE: dict[Any, Callable[..., QuantizedTensor]] = {
    Dialect.avg_pool2d: real_average,
    TorchOperations.avg_pool2d: torchs_average,
    QNNPACKOperations.avg_pool2d: qnnpacks_average,
}
ADAPTIVE: dict[Any, Callable[..., QuantizedTensor]] = {
    Dialect.adaptive_avg_pool2d: real_adaptive,
    TorchOperations.adaptive_avg_pool2d: torchs_adaptive,
    QNNPACKOperations.adaptive_avg_pool2d: qnnpacks_adaptive,
}


# ---- on tensors ------------------------------------------------------------------------------------------------------


def window_sums(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Sums of the windows of (…, H, W), zeros around it, in x's dtype."""
    padded = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    return padded.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1]).sum((-1, -2), dtype=x.dtype)


def centred(x: QuantizedTensor) -> Tensor:
    """``q - z``, int32."""
    return x.integers.int() - int(x.qparams.zero_point)


def every_region(x: Tensor, size: Pair) -> Iterator[tuple[Any, int]]:
    """The index of each region, row by row, and how many elements it has."""
    for rows in regions(x.shape[-2], size[0]):
        for columns in regions(x.shape[-1], size[1]):
            yield (..., rows, columns), (rows.stop - rows.start) * (columns.stop - columns.start)


def in_places(parts: list[Tensor], size: Pair) -> Tensor:
    """A result for each region -> (…, Ho, Wo)."""
    return torch.stack(parts, -1).reshape(*parts[0].shape, *size)


def on_grid(codes: Tensor, x: QuantizedTensor) -> QuantizedTensor:
    """Codes clipped to the integers of x's grid."""
    spec = x.qparams.spec
    return QuantizedTensor(codes.clamp(spec.qmin, spec.qmax).to(x.integers.dtype), x.qparams)
