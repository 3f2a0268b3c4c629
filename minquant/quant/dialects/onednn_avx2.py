"""onednn on an x86 processor without VNNI: other kernels, which may saturate and which round in another order."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.saturating import saturating_matmul

from ..integer import accumulate
from ..qtensor import QTensor
from ..spec import QParams
from .base import codes_on
from .onednn import ONEDNN, code
from .onednn import real as scaled_one_by_one
from .reference import real
from .saturating_conv import taps_in_pairs

__all__ = ["ONEDNNWithoutVNNI"]


def codes(acc: Any, x_scale: Any, w_scale: Any, bias: Any, inverse: Any, zero_point: Any) -> Any:
    """``rint(f(f(y · f(1/so')) + zo))`` with ``y = f(f(f(acc) · f(se·we)) + bias)``."""
    return code(real(acc, x_scale, w_scale, bias), inverse, zero_point)


def divided_codes(acc: Any, x_scale: Any, w_scale: Any, bias: Any, out_scale: Any, zero_point: Any) -> Any:
    """``rint(f(f(y / so') + zo))`` with onednn's own order of multiplications."""
    return np.rint(scaled_one_by_one(acc, x_scale, w_scale, bias) / out_scale + zero_point)


class ONEDNNWithoutVNNI(ONEDNN):
    """Products are added in pairs in int16, and the scales of input and weight are multiplied first.

    A convolution has three kernels. Depthwise: exact sums. Groups of channels that are not multiples of 4: the
    library's plain reference, with exact sums, onednn's order of multiplications, and a division by the output's
    scale. All others: pairs of neighbouring channels within a tap.

    Source: jit_uni_x8s8s32x_convolution, ref_convolution_int8 and gemm_x8s8s32x_matmul of oneDNN 3.12, as AVX2 runs
    them in torch 2.13.
    """

    name = "onednn_avx2"
    adds_exactly = False
    real, codes = staticmethod(real), staticmethod(codes)

    def accumulate(self, qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray) -> np.ndarray:
        """``Σ_pairs clip(qx·qw + qx'·qw', int16) - zx·Σ qw``."""
        return accumulate(qx, zx, qw, zw, saturating_matmul)

    def convolves_exactly(self, weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
        """The depthwise kernel and the library's reference do."""
        return has_no_kernel(weight_shape, geometry) or is_depthwise(weight_shape, geometry)

    def conv_sums(self, x: QTensor, weight: QTensor, geometry: Geometry) -> np.ndarray:
        """In pairs by one of the three kernels."""
        if self.convolves_exactly(weight.shape, geometry):
            return super().conv_sums(x, weight, geometry)
        return taps_in_pairs(x.int_repr(), x.qparams.zero_point, weight.int_repr(), geometry)

    def conv_of_scales(
        self,
        x: QTensor,
        weight: QTensor,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
        geometry: Geometry,
        x_scale: np.ndarray,
        out_scale: np.ndarray,
    ) -> QTensor:
        """By the library's reference kernel, ``rint(f(f(u/so') + zo))``, where there is no other."""
        if not has_no_kernel(weight.shape, geometry):
            return super().conv_of_scales(x, weight, bias, output, relu, geometry, x_scale, out_scale)
        terms = x_scale, weight.qparams.scale, bias, out_scale
        to_codes = codes_on(output, relu, divided_codes, terms, np.float32(output.zero_point))
        return QTensor.clipped(geometry.channels_last(to_codes(self.conv_sums(x, weight, geometry)), x.shape), output)


def is_depthwise(weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Several groups of one channel in and one out."""
    return geometry.groups > 1 and weight_shape[:2] == (geometry.groups, 1)


def has_no_kernel(weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether oneDNN falls back on its reference: groups of channels in or out that are no multiple of 4."""
    per_group = weight_shape[0] // geometry.groups, weight_shape[1]
    return geometry.groups > 1 and not is_depthwise(weight_shape, geometry) and any(n % 4 for n in per_group)
