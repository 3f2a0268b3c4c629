"""Operations for which qnnpack has kernels of its own; for the rest it runs torch's native ones (`torch_operations`).

================  ====================================================================================================
add               in fixed point: ``ma = rint((sa/so) · 2ᵏ)``, k so that the larger of ma, mb has 22 bits;
                  ``(ma(qa - za) + mb(qb - zb)) / 2ᵏ`` rounded to nearest, halves away from zero, ``+ zo``
average pooling   ``rint(f(f(Σ(q - z)) · f(s / f(s·n)))) + z``, in every memory order
sigmoid           a table: ``rint(f(256 / f(1 + exp(-x))))``; scale 1/256, zero point 0 alone
tanh              a table: ``rint(f(f(128 · tanh(x)) + 128))``; scale 1/128, zero point 128 alone
softmax           a table of ``t = rint(S · exp((q - 255) · s))``, ``S = min((2³² - 1)/n, 2²³ - 1)``, and integers from
                  then on: ``min(⌊(256·t + ⌊Σt/2⌋) / Σt⌋, 255)``; scale 1/256, zero point 0, else the native one
================  ====================================================================================================

exp and tanh in float64, rounded to float32 where torch's are float32: see `torch_operations`.

Source: aten/src/ATen/native/quantized/cpu/qnnpack/src, torch 2.13, x86.
"""

from __future__ import annotations

import numpy as np

from ..qtensor import QTensor
from ..spec import QParams
from .torch_operations import TANH_SCALE, TANH_ZERO_POINT, TorchOperations, relu_of
from .torch_pooling import centred, window_sums
from .torch_rounding import on_grid

__all__ = ["UNIT_SCALE", "QNNPACKOperations", "exponentials"]

F32 = np.float32
MULTIPLIER_BITS = 22
UNIT_SCALE = F32(1 / 256)
SMALLEST_RATIO, LARGEST_RATIO = 2.0**-14, 2.0**8
INTEGERS = np.arange(256)


class QNNPACKOperations(TorchOperations):
    """add, average pooling, sigmoid, tanh and softmax as qnnpack has them."""

    def add(self, a: QTensor, b: QTensor, output: QParams, relu: bool) -> QTensor:
        """``a + b`` in fixed point where the shapes are equal; broadcast operands go to the native kernel.

        Of fewer than 8 elements, torch's result is undefined where both ratios of scales are below 2⁻¹⁰: it shifts by
        more bits than int32 has.

        Raises:
            ValueError: a scale less than 2⁻¹⁴ times or at least 2⁸ times the output's, which qnnpack refuses too.
        """
        if a.shape != b.shape:
            return super().add(a, b, output, relu)
        ratios = [self._ratio(x, output) for x in (a, b)]
        shift = MULTIPLIER_BITS - int(np.frexp(max(ratios))[1])
        ma, mb = (int(np.rint(np.ldexp(ratio, shift))) for ratio in ratios)
        acc = ma * centred(a).astype(np.int64) + mb * centred(b)
        half = (np.int64(1) << (shift - 1)) - (acc < 0)  # halves away from zero
        codes = np.clip((acc + half) >> shift, -32768, 32767) + output.zero_point
        return QTensor(relu_of(on_grid(codes, output), output, relu), output)

    def _ratio(self, x: QTensor, output: QParams) -> np.float32:
        ratio = x.qparams.scale / output.scale
        if not SMALLEST_RATIO <= ratio < LARGEST_RATIO:
            raise ValueError(
                f"{self.name}: add takes operands of 2^-14 to 2^8 times the output's scale, got {x.qparams.scale:.7g} "
                f"and {output.scale:.7g}, {ratio:.7g} times; calibrate on data of the range that the layer sees"
            )
        return np.float32(ratio)

    def avg_pool2d(
        self, x: QTensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], output: QParams
    ) -> QTensor:
        """The mean of each window, on x's own grid. Source: torch.nn.functional.avg_pool2d, torch 2.13."""
        grid = x.qparams
        total = window_sums(centred(x), kernel, stride, padding).astype(F32)
        multiplier = grid.scale / (grid.scale * F32(kernel[0] * kernel[1]))
        return QTensor(on_grid(np.rint(total * multiplier) + grid.zero_point, grid), grid)

    def adaptive_avg_pool2d(self, x: QTensor, size: tuple[int, int], output: QParams) -> QTensor:
        """As `avg_pool2d` where regions larger than one element tile the input; else the native kernel."""
        shape = x.shape[-2:]
        if shape == size or shape[0] % size[0] or shape[1] % size[1]:
            return super().adaptive_avg_pool2d(x, size, output)
        kernel = shape[0] // size[0], shape[1] // size[1]
        return self.avg_pool2d(x, kernel, kernel, (0, 0), output)

    def sigmoid(self, x: QTensor, output: QParams) -> QTensor:
        """``1/(1 + exp(-x))`` from a table.

        Raises:
            ValueError: an output grid other than scale 1/256, zero point 0.
        """
        self.only_grid("sigmoid", output, UNIT_SCALE, 0)
        with np.errstate(over="ignore"):
            power = np.exp(-real_of_all_integers(x).astype(np.float64)).astype(F32)
        return QTensor(as_table(F32(256) / (F32(1) + power))[x.int_repr()], output)

    def tanh(self, x: QTensor, output: QParams) -> QTensor:
        """``tanh(x)`` from a table.

        Raises:
            ValueError: an output grid other than scale 1/128, zero point 128.
        """
        self.only_grid("tanh", output, TANH_SCALE, TANH_ZERO_POINT)
        tangent = np.tanh(real_of_all_integers(x).astype(np.float64)).astype(F32)
        return QTensor(as_table(F32(128) * tangent + F32(128))[x.int_repr()], output)

    def softmax(self, x: QTensor, dim: int, output: QParams) -> QTensor:
        """``exp(x)/Σ exp(x)`` along `dim` in integers, from a table of exponentials."""
        if output.scale != UNIT_SCALE or output.zero_point != 0:
            return super().softmax(x, dim, output)
        q = x.int_repr().astype(np.int64)
        table = exponentials(x.qparams.scale, x.shape[dim])
        power = table[255 - q.max(axis=dim, keepdims=True, initial=0) + q]
        total = power.sum(axis=dim, keepdims=True)
        return QTensor(np.minimum((256 * power + total // 2) // np.maximum(total, 1), 255), output)


def exponentials(scale: np.ndarray, n: int) -> np.ndarray:
    """``rint(S · exp((q - 255) · s))`` of 0…255, int64, for sums of n of them."""
    largest_entry = min((2.0**32 - 1) / n, 2.0**23 - 1)
    return np.rint(largest_entry * np.exp((INTEGERS - 255) * np.float64(scale))).astype(np.int64)


def real_of_all_integers(x: QTensor) -> np.ndarray:
    """The real values of 0…255 on x's grid."""
    return x.qparams.scale * (INTEGERS - x.qparams.zero_point).astype(F32)


def as_table(values: np.ndarray) -> np.ndarray:
    """256 float32 values, clipped to 0…255 and rounded."""
    return np.rint(np.clip(values, F32(0), F32(255))).astype(np.uint8)
