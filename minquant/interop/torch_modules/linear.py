"""Linear on integers, static and dynamic, as torch modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.kernels import cuda
from minquant.quant import PerGroup, PerToken, QParams

from . import quantizing, rules
from .integer_layer import IntegerLayer, real_tensor
from .quantized import Grid, QuantizedTensor, integers_of
from .rules import Finish, finish_of
from .sums import grouped_real

__all__ = ["DynamicLinear", "StaticActivationLinear", "StaticLinear"]


class Linear(IntegerLayer):
    """What `StaticLinear` and `DynamicLinear` share."""

    def rows(self, x: Tensor) -> Tensor:
        """(…, K) -> (R, K)."""
        features = self.weight.shape[1]
        if not x.ndim or x.shape[-1] != features:
            raise ValueError(f"{self.where}: the last axis must have {features} features, got shape {tuple(x.shape)}")
        return x.reshape(-1, features)

    def sums(self, rows: Tensor, zx: Tensor | int) -> tuple[Tensor, Tensor | None]:
        """``Σ (qx - zx)(qw - zw)``, (R, N) int32, and what is to be taken from it."""
        zw = self.weight.signed()[1] if self.weight.has_zero_points else 0
        return cuda.sums(rows, zx, self.weight.columns()[0], zw)

    @property
    def is_grouped(self) -> bool:
        """Whether runs of K have scales of their own."""
        return isinstance(self.weight.spec.granularity, PerGroup)

    def grouped(self, rows: Tensor, zx: Tensor | int, x_scale: Tensor) -> Tensor:
        """The real output (R, N) of a weight with groups, relu included."""
        y = grouped_real(rows, zx, self.weight, x_scale, self.bias)
        return y.clamp(min=0) if self.relu else y


class StaticLinear(Linear):
    """minquant's `QuantizedLinear`: integers in, integers out.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.output = Grid(layer.output)

    def forward(self, x: QuantizedTensor) -> QuantizedTensor:
        """(…, K) integers -> (…, N) integers."""
        x = integers_of(x, self)
        rows, output = self.rows(x.integers), self.output.qparams
        zx = int(x.qparams.zero_point)
        if self.is_grouped:
            y = self.grouped(rows, zx, torch.tensor(float(x.qparams.scale), device=rows.device))
            q = quantizing.quantize(self.dialect, y, output)
        else:
            finish: Finish = self.once(lambda: self.finish(x.qparams), x.qparams, self.weight.qparams, output)
            q = finish(*self.sums(rows, zx))
        return QuantizedTensor(q.reshape(*x.shape[:-1], self.weight.shape[0]), output)

    def finish(self, x: QParams) -> Finish:
        """What becomes of the sums of an input on that grid."""
        self.check_room(x.zero_point, x.spec)
        weight_scale, output = self.weight.qparams.scale, self.output.qparams
        epilogue = self.dialect.to_codes(x.scale, weight_scale, self.host_bias(), output, self.relu)
        return finish_of(epilogue, self.weight.scale.device)


class RealLinear(Linear):
    """What Linears with real outputs share."""

    def output(self, q: Tensor, zx: Tensor | int, x_scale: Tensor) -> Tensor:
        """Integers (R, K) -> real values (R, N)."""
        if self.is_grouped:
            return self.grouped(q, zx, x_scale)
        finish: Finish = self.once(self.finish, self.weight.qparams)
        return replace(finish, terms=(x_scale, *finish.terms[1:]))(*self.sums(q, zx))

    def finish(self) -> Finish:
        """What becomes of the sums, but for the input's scale."""
        one, w_scale = np.ones((), np.float32), self.weight.qparams.scale
        epilogue = self.dialect.to_real(one, w_scale, self.host_bias(), self.relu)
        return finish_of(epilogue, self.weight.scale.device)


class DynamicLinear(RealLinear):
    """minquant's `DynamicQuantizedLinear`: float32 in and out, integers in between.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.input_spec = layer.input_spec

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) real values -> (…, N)."""
        rows = self.rows(real_tensor(x, self))
        q, scale, zero_point = quantizing.quantize_at_run_time(self.dialect, rows, self.input_spec, self.where)
        self.check_room(zero_point, self.input_spec)
        x_scale = scale if isinstance(scale, Tensor) else rules.on_device((scale,), rows.device)[0]
        y = self.output(q, self.zero_points(zero_point), x_scale)
        quantizing.refuse_not_finite(scale, self.where)
        return y.reshape(*x.shape[:-1], self.weight.shape[0])

    def zero_points(self, chosen: np.ndarray) -> Tensor | int:
        """Of the input: one number where there is no more than one."""
        if self.input_spec.symmetric or not isinstance(self.input_spec.granularity, PerToken):
            return int(chosen.flat[0]) if chosen.size else 0
        return rules.on_device((chosen,), self.weight.scale.device)[0]


class StaticActivationLinear(RealLinear):
    """minquant's `StaticActivationLinear`: float32 in and out; the input's grid was chosen beforehand.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.input_grid = Grid(layer.input_grid)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) real values -> (…, N)."""
        rows, grid = self.rows(real_tensor(x, self)), self.input_grid.qparams
        if rows.isnan().any():
            raise ValueError(quantizing.NOT_FINITE.format(self.where))
        self.check_room(grid.zero_point, grid.spec)
        q = quantizing.quantize_plainly(rows, grid)
        y = self.output(q, int(grid.zero_point), rules.on_device((grid.scale,), rows.device)[0])
        return y.reshape(*x.shape[:-1], self.weight.shape[0])
