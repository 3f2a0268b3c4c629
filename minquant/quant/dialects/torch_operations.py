"""Element-wise operations, concatenation and activations on quantized tensors, as torch's native CPU kernels run them.

fbgemm, x86 and onednn share these kernels; qnnpack has some of its own (`qnnpack_operations`).

================  ====================================================================================================
add               dequantize both, ``f(a + b)``, relu, quantize: in whole vectors or left over, see `torch_rounding`
mul               ``rint(f(f((qa - za)(qb - zb)) · f(f(sa·sb) · f(1/so)))) + zo``
cat               dequantize, ``rint(fma(x, f(1/so), zo))``; of channels in channels_last memory, as add does
add_scalar        the zero point moves by ``rint(c/s)``; if it would leave the grid, the scale grows instead
mul_scalar        the scale is multiplied; a negative factor mirrors the integers
sigmoid, tanh     of the dequantized value in float32, quantized
softmax           of the dequantized values in float32, ``rint(fma(p, f(1/so), zo))``
================  ====================================================================================================

exp and tanh are computed in float64 and rounded; torch's are off by up to a float32 step or two, so that an integer may
differ by one where the value lies that near to a half step (about one of a million values does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..qtensor import QTensor
from ..spec import QParams, QSpec
from .base import Dialect
from .torch_pooling import adaptive_avg_pool2d, avg_pool2d, centred, lies_channels_last
from .torch_rounding import (
    dequantized_as_left_over,
    dequantized_in_vectors,
    in_vectors,
    quantized_as_left_over,
    quantized_in_vectors,
    requantized,
    whole_channels,
)

__all__ = ["TorchOperations"]

TANH_SCALE, TANH_ZERO_POINT = np.float32(2.0**-7), 128


class TorchOperations(Dialect):
    """What fbgemm, x86 and onednn do to quantized tensors outside of Linear and Conv.

    A QTensor does not say how it lies in memory: tensors are taken to lie in the order of their axes, images as
    `channels_last` says. torch has some in other orders (what comes straight from a Conv1d, a softmax over channels, or
    a QuantStub whose images no convolution has seen); of those, half steps may go the other way here.
    """

    pooling_keeps_the_grid = True

    lanes = 32
    """Bytes of a vector register. torch's are 32 with AVX2 and 64 with AVX-512."""

    channels_last = True
    """Whether (N, C, H, W) lies in memory as (N, H, W, C), as torch's convolutions leave their output."""

    # ---- element-wise ------------------------------------------------------------------------------------------------

    def add(self, a: QTensor, b: QTensor, output: QParams, relu: bool) -> QTensor:
        """``a + b`` on the output's grid; shapes broadcast. Source: torch.ops.quantized.add, add_relu, torch 2.13."""
        whole = dequantized_in_vectors(a) + dequantized_in_vectors(b)
        rest = dequantized_as_left_over(a) + dequantized_as_left_over(b)
        if relu:
            whole, rest = np.maximum(whole, np.float32(0)), np.maximum(rest, np.float32(0))
        return self._by_place(whole, rest, output, in_vectors([a.shape, b.shape], self.lanes, self.channels_last))

    def mul(self, a: QTensor, b: QTensor, output: QParams, relu: bool) -> QTensor:
        """``a · b`` on the output's grid; shapes broadcast. Source: torch.ops.quantized.mul, mul_relu, torch 2.13."""
        acc = centred(a) * centred(b)
        multiplier = a.qparams.scale * b.qparams.scale * (np.float32(1) / output.scale)
        places = in_vectors([a.shape, b.shape], self.lanes, self.channels_last)
        return QTensor(relu_of(requantized(acc, multiplier, output, places), output, relu), output)

    def _by_place(self, whole: np.ndarray, rest: np.ndarray, output: QParams, places: np.ndarray) -> QTensor:
        q = np.where(places, quantized_in_vectors(whole, output), quantized_as_left_over(rest, output))
        return QTensor(q, output)

    def add_scalar(self, a: QTensor, c: float, output: QParams) -> QTensor:
        """``a + c``, the integers unchanged as long as the zero point stays on the grid; `output` has no say.

        With ``k = rint(c/s)`` it becomes ``z - k``. Past an end it is that end, and the scale covers the rest:
        ``s' = (qmax - (z - k))/(qmax - qmin) · s`` below, ``(z - k - qmin)/(qmax - qmin) · s`` above.
        torch keeps ``s'`` in float64; its kernels round it to float32, as is done here at once.

        Source: torch.ops.quantized.add_scalar, torch 2.13.
        """
        spec, scale = a.qparams.spec, float(a.qparams.scale)
        moved = int(a.qparams.zero_point) - int(np.rint(c / scale))
        if spec.qmin <= moved <= spec.qmax:
            return QTensor(a.int_repr(), grid_of(a.qparams.scale, moved, spec))
        reach = spec.qmax - moved if moved < spec.qmin else moved - spec.qmin
        end = spec.qmin if moved < spec.qmin else spec.qmax
        grid = grid_of(reach / (spec.qmax - spec.qmin) * scale, end, spec)
        acc = a.int_repr().astype(np.int32) - moved
        multiplier = a.qparams.scale * (np.float32(1) / grid.scale)  # at most 1: nothing leaves int32
        return QTensor(requantized(acc, multiplier, grid, np.zeros(a.shape, bool)), grid)

    def mul_scalar(self, a: QTensor, c: float, output: QParams) -> QTensor:
        """``a · c``: the scale is multiplied by ``|c|``; if ``c < 0``, ``q -> qmin + qmax - q``, and so the zero point.

        `output` has no say. ``c = 0`` gives zeros on the grid of scale 1 and zero point 0.

        Source: torch.ops.quantized.mul_scalar, torch 2.13.
        """
        spec, zero_point = a.qparams.spec, a.qparams.zero_point
        if c == 0:
            return QTensor(np.zeros(a.shape, spec.dtype), grid_of(1, 0, spec))
        scale = abs(c) * float(a.qparams.scale)
        if c > 0:
            return QTensor(a.int_repr(), grid_of(scale, zero_point, spec))
        ends = spec.qmin + spec.qmax
        mirrored = (ends - a.int_repr().astype(np.int32)).astype(spec.dtype)
        return QTensor(mirrored, grid_of(scale, ends - zero_point, spec))

    # ---- concatenation -----------------------------------------------------------------------------------------------

    def cat(self, operands: Sequence[QTensor], dim: int, output: QParams) -> QTensor:
        """The operands one after the other along `dim`, all on the output's grid.

        Channels (``dim=1``, not -3) of images in channels_last memory go through a kernel of their own, which copies
        an operand that lies on the output's grid and else takes whole vectors of a quarter register of channels.

        Source: torch.ops.quantized.cat, torch 2.13.
        """
        if dim == 1 and all(lies_channels_last(x.shape, self.channels_last) for x in operands):
            return QTensor(np.concatenate([self._channels(x, output) for x in operands], axis=1), output)
        real = np.concatenate([x.dequantize() for x in operands], axis=dim)
        return self.quantize(real, output)

    def _channels(self, x: QTensor, output: QParams) -> np.ndarray:
        if x.qparams.scale == output.scale and x.qparams.zero_point == output.zero_point:
            return x.int_repr()
        places = whole_channels(x.shape, self.lanes)
        return self._by_place(dequantized_in_vectors(x), dequantized_as_left_over(x), output, places).int_repr()

    # ---- pooling -----------------------------------------------------------------------------------------------------

    def avg_pool2d(
        self, x: QTensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], output: QParams
    ) -> QTensor:
        """The mean of each window, on x's own grid. Source: torch.nn.functional.avg_pool2d, torch 2.13."""
        return avg_pool2d(x, kernel, stride, padding, self.lanes, self.channels_last)

    def adaptive_avg_pool2d(self, x: QTensor, size: tuple[int, int], output: QParams) -> QTensor:
        """The mean of each region, on x's own grid. Source: torch.nn.functional.adaptive_avg_pool2d, torch 2.13."""
        return adaptive_avg_pool2d(x, size, self.lanes, self.channels_last)

    # ---- activations -------------------------------------------------------------------------------------------------

    def sigmoid(self, x: QTensor, output: QParams) -> QTensor:
        """``1/(1 + exp(-x))``. Source: torch.ops.quantized.sigmoid, torch 2.13."""
        with np.errstate(over="ignore"):
            power = np.exp(-x.dequantize().astype(np.float64)).astype(np.float32)
        whole = np.float32(1) / (np.float32(1) + power)
        rest = (1 / (1 + power.astype(np.float64))).astype(np.float32)
        return self._by_place(whole, rest, output, in_vectors([x.shape], self.lanes, self.channels_last))

    def tanh(self, x: QTensor, output: QParams) -> QTensor:
        """``tanh(x)``, on the one grid that torch has for it: scale 1/128, zero point 128.

        Raises:
            ValueError: another grid.

        Source: torch.tanh of a quantized tensor, torch 2.13.
        """
        self.only_grid("tanh", output, TANH_SCALE, TANH_ZERO_POINT)
        whole, rest = (np.tanh(f(x).astype(np.float64)).astype(np.float32) for f in BOTH)
        return self._by_place(whole, rest, output, in_vectors([x.shape], self.lanes, self.channels_last))

    def softmax(self, x: QTensor, dim: int, output: QParams) -> QTensor:
        """``exp(x)/Σ exp(x)`` along `dim`. Source: torch.ops.quantized.softmax, torch 2.13."""
        real = x.dequantize()
        power = np.exp((real - real.max(axis=dim, keepdims=True, initial=-np.inf)).astype(np.float64))
        return self.quantize((power / power.sum(axis=dim, keepdims=True)).astype(np.float32), output)

    def only_grid(self, operation: str, output: QParams, scale: np.float32, zero_point: int) -> None:
        """ValueError unless the output's grid is the one that the operation writes to."""
        if output.scale != scale or output.zero_point != zero_point:
            raise ValueError(
                f"{self.name}: {operation} writes to the grid of scale {scale}, zero point {zero_point} alone, got "
                f'{output}; use FixedQParams of that grid, or backend="reference"'
            )


BOTH = (dequantized_in_vectors, dequantized_as_left_over)


def grid_of(scale: Any, zero_point: Any, spec: QSpec) -> QParams:
    """The grid of a scale, rounded to float32, and a zero point."""
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), spec)


def relu_of(q: np.ndarray, output: QParams, relu: bool) -> np.ndarray:
    """``max(q, z)`` if a relu is fused in."""
    return np.maximum(q, output.zero_point).astype(q.dtype) if relu else q
