"""torch's default fake quantizer for quantization-aware training, with its own arithmetic and its own habits."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.tensor import Function, Tensor

from ..fake_quant import FakeQuantize
from ..grid import float_array
from ..observers import MovingAverageMinMaxObserver
from ..spec import QParams, QSpec
from .fbgemm_grid import fbgemm_qparams

__all__ = ["FusedMovingAvgObsFakeQuantize"]


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """Moving-average range, FBGEMM's grid for it, and rounding, as one torch operator does them.

    Three things differ from minquant's own `FakeQuantize`, and each is a reason why torch's trained model and its
    converted self disagree:

    - the grid follows FBGEMM's formula here, and the observer's formula in `convert`;
    - the range goes on moving in `eval`, and `convert` observes the weight once more;
    - the gradient is zero wherever the integer is clipped: ``rint(f(x·f(1/s))) + z`` outside ``qmin … qmax``.

    Args:
        observer: MovingAverageMinMaxObserver or MovingAveragePerChannelMinMaxObserver.
        quant_min: smallest integer.
        quant_max: largest integer.
        observer_kwargs: everything else goes to the observer.

    Source: torch.ao.quantization.FusedMovingAvgObsFakeQuantize and torch.fused_moving_avg_obs_fake_quant, torch 2.13.
    """

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)

    def observe(self, x: Tensor) -> None:
        """Lets the observer see x, in training and in eval alike."""
        self.activation_post_process(x)

    def forward(self, x: Tensor) -> Tensor:
        """The values of x on FBGEMM's grid of the range seen so far."""
        if self.observer_enabled:
            self.observe(x)
        if not self.fake_quant_enabled:
            return x
        observer = self.activation_post_process
        qparams = fbgemm_grid(*observer.range(), observer.spec)
        out = TorchRoundToGrid.apply(x, qparams=qparams)
        out.qparams = qparams
        return out


def fbgemm_grid(x_min: np.ndarray, x_max: np.ndarray, spec: QSpec) -> QParams:
    """FBGEMM's grid for a range, or for each channel's range."""
    pairs = [
        fbgemm_qparams(low, high, spec.qmin, spec.qmax, spec.symmetric, scale_dtype=np.float32)
        for low, high in zip(np.ravel(x_min), np.ravel(x_max), strict=True)
    ]
    scale = np.array([s for s, _ in pairs], np.float32).reshape(np.shape(x_min))
    zero_point = np.array([z for _, z in pairs], np.int32).reshape(np.shape(x_min))
    return QParams(scale, zero_point, spec)


class TorchRoundToGrid(Function):
    """``f((clip(rint(f(x·f(1/s))) + z) - z)·s)``; the gradient passes where no clipping was needed."""

    def forward(self, x: np.ndarray, qparams: QParams) -> np.ndarray:
        scale, zero_point = qparams.expand(x.shape)
        codes = np.rint(float_array(x, "fake-quantize") * (np.float32(1) / scale)) + zero_point.astype(np.float32)
        self.save((qparams.spec.qmin <= codes) & (codes <= qparams.spec.qmax))
        return (np.clip(codes, qparams.spec.qmin, qparams.spec.qmax) - zero_point.astype(np.float32)) * scale

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (inside,) = self.saved
        return grad * inside
