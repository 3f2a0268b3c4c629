"""fbgemm, torch's engine for x86 servers, on a processor with VNNI."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import ToCodes, ToReal
from minquant.kernels.fma import fma

from ..qtensor import QTensor
from ..spec import QParams
from .base import codes_on
from .saturating_conv import windows_in_pairs
from .torch_rules import TorchDialect, saturated

__all__ = ["FBGEMM"]


class FBGEMM(TorchDialect):
    """Float multiplier, float bias: the bias is never an integer here."""

    name = "fbgemm"
    reduce_range = True

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """``y = fma(f(acc), f(sx·sw), bias)``."""
        return ToReal(real, x_scale, w_scale, bias, relu)

    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """``rint(xf · f(sx·sw/so)) + zo``; ``xf`` is the accumulator with the bias counted in its steps.

        One weight scale: ``xf = fma(bias, f(1/(sx·sw)), f(acc))``; one a channel: ``xf = f(f(acc) + f(bias/(sx·sw)))``.
        """
        step = x_scale * w_scale
        multiplier, zero_point = step / output.scale, np.float32(output.zero_point)
        if np.ndim(w_scale) == 0:
            terms = bias, np.float32(1) / step, multiplier
            return codes_on(output, relu, codes_of_one_scale, terms, zero_point)
        return codes_on(output, relu, codes, (bias / step, multiplier), zero_point)

    def convolves_exactly(self, weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
        """But for the depthwise kernel."""
        return not has_depthwise_kernel(weight_shape, geometry)

    def conv_sums(self, x: QTensor, weight: QTensor, geometry: Geometry) -> np.ndarray:
        """Exact, but for the depthwise kernel, which adds products in pairs in int16 on every processor.

        The kernel for groups of 2, 4, 8 or 16 channels is exact where there is VNNI (genU8I8S32FMA in FBGEMM's source).
        """
        if self.convolves_exactly(weight.shape, geometry):
            return super().conv_sums(x, weight, geometry)
        zx, zw = x.qparams.zero_point, weight.qparams.zero_point
        return windows_in_pairs(x.int_repr(), zx, weight.int_repr(), zw, geometry)


def real(acc: Any, x_scale: Any, w_scale: Any, bias: Any) -> Any:
    """``fma(f(acc), f(sx·sw), bias)``."""
    return fma(np.float32(acc), x_scale * w_scale, bias)


def codes_of_one_scale(acc: Any, bias: Any, inverse_step: Any, multiplier: Any, unused: Any, zero_point: Any) -> Any:
    """``rint(f(fma(bias, f(1/(sx·sw)), f(acc)) · multiplier)) + zo``."""
    return saturated(np.rint(fma(bias, inverse_step, np.float32(acc)) * multiplier), zero_point)


def codes(acc: Any, bias_steps: Any, multiplier: Any, unused: Any, unused_too: Any, zero_point: Any) -> Any:
    """``rint(f(f(f(acc) + bias_steps) · multiplier)) + zo``."""
    return saturated(np.rint((np.float32(acc) + bias_steps) * multiplier), zero_point)


def has_depthwise_kernel(weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether FBGEMM runs its depthwise kernel: a multiple of 8 channels, each its own group, and a common window.

    Source: takeDepthWiseFastPath in FbgemmConv.cc.
    """
    size = geometry.kernel[0]
    return (
        weight_shape[1] == 1
        and weight_shape[0] in (geometry.groups, 2 * geometry.groups)
        and geometry.groups % 8 == 0
        and geometry.kernel in ((3, 3), (5, 5), (7, 7))
        and geometry.padding == ((size // 2, size // 2),) * 2
        and set(geometry.stride) <= {1, 2}
        and set(geometry.dilation) == {1}
    )
