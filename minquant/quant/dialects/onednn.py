"""onednn, Intel's library behind torch's ``"onednn"`` engine."""

from __future__ import annotations

import numpy as np

from ..spec import QParams, QSpec
from .fbgemm_grid import fbgemm_qparams
from .torch_rules import TorchDialect, run_time_range

__all__ = ["ONEDNN"]


def reciprocal_twice(value: np.ndarray) -> np.ndarray:
    """``f(1/f(1/float64(v)))``: the library is handed the reciprocal of each scale and takes it back."""
    inverse = (1.0 / value.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / inverse)


class ONEDNN(TorchDialect):
    """Scales arrive as reciprocals and are inverted again; the zero point is added before the rounding."""

    name = "onednn"

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``clip(rint(f(f(x · f(1/se)) + z)), 0, 255)`` with ``se`` the twice inverted scale."""
        scale, zero_point = fbgemm_qparams(*run_time_range(x), spec.qmin, spec.qmax)
        effective = reciprocal_twice(np.asarray(scale))
        codes = np.rint(x * (np.float32(1) / effective) + np.float32(zero_point))
        return np.clip(codes, 0, 255).astype(np.uint8), effective, np.asarray(zero_point, np.int32)

    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """``y = f(f(f(f(acc)·se)·we) + bias)``."""
        return acc.astype(np.float32) * x_scale * reciprocal_twice(w_scale) + bias

    def requantize(
        self,
        acc: np.ndarray,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> np.ndarray:
        """``rint(f(f(u · f(1/so')) + zo))`` with ``u`` the rescaled float output, relu applied to ``u``."""
        real = self.rescale(acc, reciprocal_twice(x_scale), w_scale, bias)
        if relu:
            real = np.maximum(real, np.float32(0))
        inverse = np.float32(1) / reciprocal_twice(output.scale)
        codes = np.rint(real * inverse + output.zero_point.astype(np.float32))
        return np.clip(codes, output.spec.qmin, output.spec.qmax).astype(np.uint8)
