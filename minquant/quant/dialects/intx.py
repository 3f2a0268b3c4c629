"""``"intx"``: torchao's integers, multiplied as integers.

torchao's Int8DynamicActivationIntxWeightConfig chooses integers for inputs and weights and then multiplies the real
values behind them in float32. Here the same integers are multiplied exactly, and the sums of the groups rescaled and
added in the plain order of `minquant.quant.dialects.reference`. Operands equal torchao's to the last bit; outputs lie
within the rounding errors of its float product (see `minquant.quant.dialects.torchao`).
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ..spec import PerToken, QSpec
from .base import Factory
from .reference import Reference
from .torchao import TINY, IntxWeightObserver, quantize_at_run_time

__all__ = ["Intx"]


class Intx(Reference):
    """Dynamic Linears: torchao's operands, reference's arithmetic."""

    name = "intx"

    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """As in torchao: int8 affine per token for the input; symmetric in groups of 32 for weights."""
        return QSpec(granularity=PerToken()), IntxWeightObserver.with_args(weight_bits=weight_bits)

    def run_time_eps(self, spec: QSpec) -> np.float32:
        """The smallest scale of an input, whatever its grid: 2⁻¹²⁶."""
        return TINY

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The grid of this x's own range, as in torchao."""
        return quantize_at_run_time(x, spec, self.run_time_eps(spec))

    def _dynamic_linear_only(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "intx has dynamic Linears only, as torchao has: use quantize_ with one of its configs, or "
            'quantize_dynamic; for anything else take backend="reference"'
        )

    quantize = converted_grid = full_spec = to_codes = _dynamic_linear_only
    observers = fake_quantizers = dynamic_conv = _dynamic_linear_only
