"""fbgemm, torch's engine for x86 servers, on a processor with VNNI."""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.fma import fma

from ..qtensor import QTensor
from ..spec import QParams
from .saturating_conv import windows_in_pairs
from .torch_rules import TorchDialect, saturating_pack

__all__ = ["FBGEMM"]


class FBGEMM(TorchDialect):
    """Float multiplier, float bias: the bias is never an integer here."""

    name = "fbgemm"
    reduce_range = True

    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """``y = fma(f(acc), f(sx·sw), bias)``."""
        return fma(acc.astype(np.float32), x_scale * w_scale, bias)

    def requantize(
        self,
        acc: np.ndarray,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> np.ndarray:
        """``rint(f(xf · f(sx·sw/so))) + zo``; ``xf`` is the accumulator with the bias counted in its steps.

        One weight scale: ``xf = fma(bias, f(1/(sx·sw)), f(acc))``; one a channel: ``xf = f(f(acc) + f(bias/(sx·sw)))``.
        """
        step = x_scale * w_scale
        multiplier = step / output.scale
        if np.ndim(w_scale) == 0:
            with_bias = fma(bias, np.float32(1) / step, acc.astype(np.float32))
        else:
            with_bias = acc.astype(np.float32) + bias / step
        steps = np.rint(with_bias * multiplier)
        lowest = int(output.zero_point) if relu else output.spec.qmin
        return saturating_pack(steps, output.zero_point, lowest, output.spec.qmax)

    def conv_sums(self, x: QTensor, weight: QTensor, geometry: Geometry) -> np.ndarray:
        """Exact, but for the depthwise kernel, which adds products in pairs in int16 on every processor.

        The kernel for groups of 2, 4, 8 or 16 channels is exact where there is VNNI (genU8I8S32FMA in FBGEMM's source).
        """
        if not has_depthwise_kernel(weight.shape, geometry):
            return super().conv_sums(x, weight, geometry)
        zx, zw = x.qparams.zero_point, weight.qparams.zero_point
        return windows_in_pairs(x.int_repr(), zx, weight.int_repr(), zw, geometry)


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
