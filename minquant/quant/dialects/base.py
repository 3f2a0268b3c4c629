"""What an engine has to say for itself: the rules that differ from one to the next.

All engines run a quantized Linear in the same three steps, and only the first and the last differ:

    quantize x  →  exact int32 matmul (`minquant.quant.integer`)  →  rescale to float, or requantize to integers

A dialect is a class with those rules as small functions of NumPy arrays, each standing once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.tensor import Tensor

from ..integer import accumulate
from ..qtensor import QTensor
from ..spec import PerGroup, QParams, QSpec

__all__ = ["Dialect", "Factory"]

Factory = Callable[[], Any]


class Dialect(ABC):
    """One engine's way to quantize, rescale and requantize."""

    name: str

    @abstractmethod
    def quantize(self, x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
        """Real values -> integers, where a model's input enters (QuantStub)."""

    @abstractmethod
    def converted_grid(self, qparams: QParams) -> QParams:
        """The grid that a converted layer writes to, given the grid that calibration chose."""

    @abstractmethod
    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integers, scale and zero point of a dynamic layer's input, chosen from this very input."""

    @abstractmethod
    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """int32 accumulator -> float32 output, bias included."""

    @abstractmethod
    def linear(self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool) -> QTensor:
        """Static quantized Linear: integers in, integers out.

        Args:
            x: (…, K), one scale.
            weight: (N, K).
            bias: (N,) float32.
            output: grid of the result.
            relu: whether a relu is fused in.

        Returns:
            QTensor (…, N) on the grid `output`.
        """

    @abstractmethod
    def qat_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Linear in quantization-aware training, from fake-quantized x and weight."""

    # ---- presets -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def observers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Activation and weight observers of static quantization."""

    @abstractmethod
    def fake_quantizers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Activation and weight fake quantizers of quantization-aware training."""

    @abstractmethod
    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """Activation grid and weight observer of dynamic quantization."""

    # ---- arithmetic --------------------------------------------------------------------------------------------------

    def check_weight(self, spec: QSpec) -> None:
        """Refuses a weight grid that this engine has no arithmetic for.

        Raises:
            ValueError: weights per group, which only the reference dialect rescales.
        """
        if isinstance(spec.granularity, PerGroup):
            raise ValueError(
                f'{self.name} has no Linear for a weight {spec}; use PerTensor or PerChannel, or backend="reference"'
            )

    def dynamic_linear(self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec) -> np.ndarray:
        """Dynamic quantized Linear: float32 in, float32 out, integers in between.

        Args:
            x: (…, K) float32; its grid is chosen from its own range.
            weight: (N, K).
            bias: (N,) float32.
            relu: whether a relu follows.
            spec: the kind of grid for x.

        Returns:
            (…, N) float32.
        """
        rows = x.reshape(-1, x.shape[-1])
        y = self.real_output(*self.quantize_at_run_time(rows, spec), weight.int_repr(), weight.qparams, bias)
        return (np.maximum(y, np.float32(0)) if relu else y).reshape(*x.shape[:-1], len(weight))

    def real_output(
        self, qx: np.ndarray, x_scale: np.ndarray, zx: np.ndarray, qw: np.ndarray, w_grid: QParams, bias: np.ndarray
    ) -> np.ndarray:
        """Integers (M, K) and (N, K) -> float32 output (M, N), bias included."""
        return self.rescale(self.accumulate(qx, zx, qw, w_grid.zero_point), x_scale, w_grid.scale, bias)

    def accumulate(self, qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray) -> np.ndarray:
        """Integers (M, K) and (N, K) -> ``Σ (qx - zx)(qw - zw)``, (M, N) int32: exact, as processors with VNNI add."""
        return accumulate(qx, zx, qw, zw)
