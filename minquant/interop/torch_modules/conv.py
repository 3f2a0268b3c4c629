"""Conv1d and Conv2d on integers, static and dynamic, as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import Epilogue
from minquant.quant import QParams, QTensor
from minquant.quant.dialects.torch_rules import QUINT8, TorchDialect

from . import quantizing, rules
from .integer_layer import IntegerLayer, real_tensor
from .quantized import Grid, QuantizedTensor, integers_of
from .rules import Finish, finish_of
from .sums import conv_sums, images

__all__ = ["DynamicConv", "StaticConv", "tiny_image"]


class Conv(IntegerLayer):
    """What `StaticConv` and `DynamicConv` share."""

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.geometry: Geometry = layer.geometry
        self.axes, self.in_channels = layer.axes, layer.in_channels

    def batch(self, x: Tensor) -> Tensor:
        """With an axis for the batch.

        Raises:
            ValueError: a shape that does not fit.
        """
        if x.ndim not in (self.axes + 1, self.axes + 2) or x.shape[-1 - self.axes] != self.in_channels:
            raise ValueError(
                f"{self.where}: expected {self.in_channels} channels and {self.axes} axes more, and a batch axis or "
                f"none, got shape {tuple(x.shape)}"
            )
        self.geometry.check_fits(x.shape[-self.axes :], self.where)
        return x if x.ndim == self.axes + 2 else x[None]

    def tiny(self, grid: QParams) -> QTensor:
        """The smallest image that the kernel fits on."""
        return tiny_image(grid, self.geometry, self.in_channels)

    def recipe(self, run: Callable[[Any], Any], weight: QTensor) -> Epilogue:
        """What the dialect makes of the sums.

        Raises:
            ValueError: its sums are not exact.
        """
        recipe = rules.conv_recipe(self.dialect, run, weight, self.geometry)
        if recipe.obstacle:
            raise ValueError(f"{self.where}: {recipe.obstacle}; convert the model with another backend")
        return recipe.epilogue

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.geometry}"


def tiny_image(grid: QParams, geometry: Geometry, channels: int) -> QTensor:
    """The smallest image that a kernel fits on, all zeros."""
    spans = [d * (k - 1) + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    size = [max(1, s - sum(p)) for s, p in zip(spans, geometry.padding, strict=True)]
    return QTensor(np.full((1, channels, *size), grid.zero_point, grid.spec.dtype), grid)


class StaticConv(Conv):
    """minquant's `QuantizedConv1d` and `QuantizedConv2d`: integers in, integers out.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.output = Grid(layer.output)

    def forward(self, x: QuantizedTensor) -> QuantizedTensor:
        """(N, C, *size) integers, or without N -> (N, M, *places) integers."""
        x = integers_of(x, self)
        batch, output = self.batch(x.integers), self.output.qparams
        finish: Finish = self.once(lambda: self.finish(x.qparams), x.qparams, self.weight.qparams, output)
        rows = finish(*conv_sums(batch, int(x.qparams.zero_point), self.weight, self.geometry))
        y = images(rows, batch.shape, self.geometry)
        return QuantizedTensor(y if x.ndim == batch.ndim else y[0], output)

    def finish(self, x: QParams) -> Finish:
        """What becomes of the sums of an input on that grid."""
        self.check_room(x.zero_point, x.spec)
        weight, bias, output = self.weight.qtensor(), self.host_bias(), self.output.qparams
        image = self.tiny(x)
        epilogue = self.recipe(lambda d: d.conv(image, weight, bias, output, self.relu, self.geometry), weight)
        return finish_of(epilogue, self.weight.scale.device)


class DynamicConv(Conv):
    """minquant's `DynamicQuantizedConv1d` and `DynamicQuantizedConv2d`: float32 in and out, integers in between.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__(layer, path)
        self.input_spec = layer.input_spec

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) real values, or without N -> (N, M, *places)."""
        batch = self.batch(real_tensor(x, self))
        to_input_grid = type(self.dialect).dynamic_conv is TorchDialect.dynamic_conv
        y = self.on_input_grid(batch) if to_input_grid else self.real(batch)
        return y if x.ndim == batch.ndim else y[0]

    def real(self, x: Tensor) -> Tensor:
        """Real values of the sums."""
        q, scale, zero_point = quantizing.quantize_at_run_time(self.dialect, x, self.input_spec, self.where)
        self.check_room(zero_point, self.input_spec)
        epilogue = self.dialect.to_real(scale, self.weight.qparams.scale, self.host_bias(), self.relu)
        finish = finish_of(epilogue, x.device)
        rows = finish(*conv_sums(q, int(zero_point), self.weight, self.geometry))
        return images(rows, x.shape, self.geometry)

    def on_input_grid(self, x: Tensor) -> Tensor:
        """As torch's engines: the sums become integers on the input's own grid, then real values."""
        dialect: Any = self.dialect
        scale, zero_point = quantizing.torchs_range(x, self.input_spec, self.where)
        grid = QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), QUINT8)
        self.check_room(grid.zero_point, QUINT8)
        weight: QTensor = self.once(self.weight.qtensor, self.weight.qparams)
        bias, image = self.host_bias(), self.tiny(grid)
        epilogue = self.recipe(lambda d: d.conv_to_input_grid(image, scale, weight, bias, self.geometry), weight)
        sums = conv_sums(quantizing.quantize(dialect, x, grid), int(grid.zero_point), self.weight, self.geometry)
        rows = finish_of(epilogue, x.device)(*sums)
        y = QuantizedTensor(images(rows, x.shape, self.geometry), grid).dequantize()
        return y.clamp(min=0) if self.relu else y
