"""fbgemm, torch's engine for x86 servers; ``"x86"`` is the same arithmetic for Linear."""

from __future__ import annotations

import numpy as np

from ..fma import fma
from ..spec import QParams
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
