"""The grid of values whose range is known without data, such as those of a sigmoid."""

from __future__ import annotations

from typing import Any

import numpy as np

from .observers import Observer
from .spec import PerTensor

__all__ = ["FixedQParamsObserver"]


class FixedQParamsObserver(Observer):
    """Answers with the scale and zero point that it was given, whatever it sees.

    Args:
        scale: positive.
        zero_point: ``quant_min <= zero_point <= quant_max``.
        dtype: "quint8" or "qint8".
        qscheme: "per_tensor_affine" or "per_tensor_symmetric".
        quant_min: smallest integer.
        quant_max: largest integer.

    Raises:
        ValueError: a scale that is not positive, a zero point off the grid, and as `Observer`.

    Source: torch.ao.quantization.observer.FixedQParamsObserver, torch 2.13.
    """

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: str = "quint8",
        qscheme: str = "per_tensor_affine",
        quant_min: int = 0,
        quant_max: int = 255,
    ) -> None:
        super().__init__(PerTensor(), dtype, qscheme, False, quant_min, quant_max, 2.0**-23)
        if not (scale > 0 and quant_min <= zero_point <= quant_max):
            raise ValueError(
                f"FixedQParamsObserver: expected scale > 0 and {quant_min} <= zero_point <= {quant_max}, got "
                f"scale={scale!r}, zero_point={zero_point!r}"
            )
        self.scale, self.zero_point = np.float32(scale), np.int32(zero_point)
        steps = np.array([quant_min - zero_point, quant_max + 1 - zero_point], np.float32)
        self._set_range(*(steps * self.scale))

    def forward(self, x: Any) -> Any:
        """Returns x; there is nothing to learn from it."""
        return x

    def reset_min_max_vals(self) -> None:
        """Forgets nothing: the range is fixed."""

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray]:
        """The scale and the zero point that it was given."""
        return np.asarray(self.scale), np.asarray(self.zero_point)
