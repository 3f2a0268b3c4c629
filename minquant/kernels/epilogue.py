"""What a layer makes of its sums: real values, or integers on the next grid; in NumPy, element by element.

``fused.py`` runs the same functions while the sums are in the cache. Importing this needs no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Epilogue", "ToCodes", "ToReal"]

Function: TypeAlias = Callable[..., Any]
"""Of numbers or arrays alike (see ``elements.py``)."""


@dataclass(frozen=True)
class ToReal:
    """``y = function(acc, x_scale, w_scale, bias)``, then relu.

    Attributes:
        function: the arithmetic.
        x_scale: float32, one number or (M, 1).
        w_scale: float32, one number or (N,).
        bias: float32 (N,).
        relu: whether negative results become 0.
    """

    function: Function
    x_scale: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray
    relu: bool = False

    def __call__(self, acc: np.ndarray) -> np.ndarray:
        """int32 sums (M, N) -> float32."""
        with np.errstate(over="ignore"):  # infinities, as the processor has them
            y = self.function(acc, self.x_scale, self.w_scale, self.bias)
        return np.maximum(y, np.float32(0)) if self.relu else y


@dataclass(frozen=True)
class ToCodes:
    """``q = clip(function(acc, a, b, c, d, zero_point), lowest, highest)``.

    Attributes:
        function: the arithmetic, up to whole numbers.
        terms: a, b, c and d: what it needs of scales and bias, each one number or (N,).
        zero_point: of the output.
        lowest: the smallest integer; with a relu, the zero point.
        highest: the largest integer.
        dtype: of the integers.
    """

    function: Function
    terms: tuple[Any, Any, Any, Any]
    zero_point: np.number
    lowest: int
    highest: int
    dtype: np.dtype

    def __call__(self, acc: np.ndarray) -> np.ndarray:
        """int32 sums (M, N) -> integers."""
        with np.errstate(over="ignore"):  # an infinite code is clipped to the end of the grid, where it belongs
            codes = self.function(acc, *self.terms, self.zero_point)
        return np.clip(codes, self.lowest, self.highest).astype(self.dtype)


Epilogue: TypeAlias = ToReal | ToCodes
