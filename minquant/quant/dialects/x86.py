"""x86, torch's default engine: fbgemm and onednn by turns."""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry

from ..qtensor import QTensor
from ..spec import QParams
from .fbgemm import FBGEMM
from .onednn import ONEDNN

__all__ = ["X86"]

MOST_GROUPS = 100


class X86(FBGEMM):
    """Linear as fbgemm; Conv as onednn where torch chooses that, else as fbgemm.

    torch chooses onednn for a convolution of at most 100 groups with symmetric weights, on Linux, on a processor with
    VNNI. What a model returns thus depends on the processor; this dialect is one with VNNI, and without it torch's
    x86 is ``"fbgemm_avx2"`` altogether.

    Source: should_use_onednn_quant (OnednnUtils.h), torch 2.13.
    """

    name = "x86"
    onednn = ONEDNN()

    def conv(
        self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool, geometry: Geometry
    ) -> QTensor:
        """By the engine that torch chooses."""
        conv = self.onednn.conv if takes_onednn(weight, geometry) else super().conv
        return conv(x, weight, bias, output, relu, geometry)

    def conv_to_input_grid(
        self, x: QTensor, scale: np.float64, weight: QTensor, bias: np.ndarray, geometry: Geometry
    ) -> QTensor:
        """Likewise."""
        if takes_onednn(weight, geometry):
            return self.onednn.conv_to_input_grid(x, scale, weight, bias, geometry)
        return super().conv_to_input_grid(x, scale, weight, bias, geometry)


def takes_onednn(weight: QTensor, geometry: Geometry) -> bool:
    """Whether torch hands this convolution to onednn."""
    return geometry.groups <= MOST_GROUPS and not weight.qparams.zero_point.any()
