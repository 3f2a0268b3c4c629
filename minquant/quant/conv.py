"""Conv1d and Conv2d in their quantized lives: fake-quantized in training, and on integers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from minquant.functional.geometry import Geometry, check_groups
from minquant.functional.movement import squeeze, unsqueeze
from minquant.functional.windows import Sizes, check_axes
from minquant.tensor import Tensor

from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .qtensor import QTensor
from .spec import PerTensor, QParams, QSpec
from .weighted import (
    IntegerWeight,
    QATWeighted,
    at,
    check_integer_spec,
    check_output_grid,
    finite_input,
    integer_input,
    real_input,
)

__all__ = [
    "DynamicQuantizedConv1d",
    "DynamicQuantizedConv2d",
    "DynamicQuantizedConvReLU1d",
    "DynamicQuantizedConvReLU2d",
    "QATConv1d",
    "QATConv2d",
    "QATConvReLU1d",
    "QATConvReLU2d",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConvReLU1d",
    "QuantizedConvReLU2d",
]


class Slides:
    """What every convolution knows of its shape, whichever life it is in."""

    axes: ClassVar[int]
    path: str

    def _set_shape(
        self, weight: Any, stride: Sizes, padding: Sizes | str, dilation: Sizes, groups: int, kind: str
    ) -> None:
        """From the weight (M, C/groups, *kernel) and torch's arguments."""
        if weight.ndim != self.axes + 2:
            raise ValueError(f"{kind}: expected a weight of {self.axes + 2} axes, got shape {weight.shape}")
        check_groups(kind, groups, out_channels=weight.shape[0])
        self.out_channels, self.in_channels = weight.shape[0], weight.shape[1] * groups
        self.kernel_size = weight.shape[2:]
        self.geometry = Geometry.of(kind, self.kernel_size, stride, padding, dilation, groups)
        self.stride, self.dilation, self.groups = self.geometry.stride, self.geometry.dilation, groups
        self.padding = padding

    def _check_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether the input has a batch axis; ValueError if it does not fit."""
        where = f"{type(self).__name__}{at(self)}"
        check_axes(shape, self.axes, where)
        if shape[-1 - self.axes] != self.in_channels:
            raise ValueError(
                f"{where}: input has shape {shape}, that is {shape[-1 - self.axes]} channels, expected "
                f"in_channels={self.in_channels}"
            )
        self.geometry.check_fits(shape[-self.axes :], where)
        return len(shape) == self.axes + 2

    def _describe(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}"
        )


# ---- in training -----------------------------------------------------------------------------------------------------


class QATConv(Slides, QATWeighted):
    """What `QATConv1d` and `QATConv2d` share."""

    def __init__(self, conv: Any, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__(conv, weight_fake_quant, backend)
        self._set_shape(conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups, type(self).__name__)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batched = self._check_shape(x.shape)
        y = get_dialect(self.backend).qat_conv(x if batched else unsqueeze(x, 0), weight, bias, self.geometry)
        return y if batched else squeeze(y, 0)

    def extra_repr(self) -> str:
        return f"{self._describe()}, backend={self.backend!r}"


class QATConv1d(QATConv):
    """Conv1d whose weight is fake-quantized at every step. See `QATWeighted`.

    Source: torch.ao.nn.qat.Conv1d, torch 2.13.
    """

    axes = 1


class QATConv2d(QATConv):
    """Conv2d whose weight is fake-quantized at every step. See `QATWeighted`.

    Source: torch.ao.nn.qat.Conv2d, torch 2.13.
    """

    axes = 2


class QATConvReLU1d(QATConv1d):
    """`QATConv1d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.qat.ConvReLU1d, torch 2.13."""

    relu = True


class QATConvReLU2d(QATConv2d):
    """`QATConv2d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.qat.ConvReLU2d, torch 2.13."""

    relu = True


# ---- on integers -----------------------------------------------------------------------------------------------------


class IntegerConv(Slides, IntegerWeight):
    """What the integer convolutions share.

    Args:
        weight: QTensor ``(out_channels, in_channels / groups, *kernel)``.
        bias: float32 array ``(out_channels,)`` or None.
        backend: the dialect.
        stride: as for `functional.conv2d`, and so are the next three. The padding is real 0, that is, the input's
            zero point.
        padding: likewise.
        dilation: likewise.
        groups: likewise.

    Raises:
        ValueError: as `IntegerWeight`; options that do not fit; in forward, an input whose shape does not fit.
    """

    def __init__(
        self,
        weight: QTensor,
        bias: np.ndarray | None,
        backend: str,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int,
    ) -> None:
        super().__init__(weight, bias, backend)
        self._set_shape(weight, stride, padding, dilation, groups, self._kind)

    def extra_repr(self) -> str:
        return f"{self._describe()}, {super().extra_repr()}"


# ---- static ----------------------------------------------------------------------------------------------------------


class QuantizedConv(IntegerConv):
    """Static quantized convolution: integers in, integers out, one pass in the dialect's arithmetic.

    Args:
        weight: this and all others: see `IntegerConv`.
        output: the grid of the result.

    Raises (in forward):
        TypeError: real values instead of integers: there is no QuantStub before the layer.
        ValueError: an input whose shape does not fit, with more than one scale, or of 16 bits.

    Source: torch.ao.nn.quantized.Conv2d, torch 2.13; Jacob et al. 2018, section 2.
    """

    def __init__(
        self,
        weight: QTensor,
        bias: np.ndarray | None,
        output: QParams,
        backend: str,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(weight, bias, backend, stride, padding, dilation, groups)
        check_output_grid(output, self._kind)
        self.output = output

    def forward(self, x: QTensor) -> QTensor:
        """(N, C, *size) integers, or without N -> (N, M, *places) integers on the grid `output`."""
        x = integer_input(x, self)
        batched = self._check_shape(x.shape)
        dialect, bias = get_dialect(self.backend), self._bias_or_zeros()
        images = x if batched else x.reshape(1, *x.shape)
        y = dialect.conv(images, self.weight, bias, self.output, self.relu, self.geometry)
        return y if batched else y.reshape(*y.shape[1:])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output={self.output}"


class QuantizedConv1d(QuantizedConv):
    """Static quantized Conv1d: integers in, integers out. Arguments and errors: see `QuantizedConv`.

    Source: torch.ao.nn.quantized.Conv1d, torch 2.13.
    """

    axes = 1


class QuantizedConv2d(QuantizedConv):
    """Static quantized Conv2d: integers in, integers out. Arguments and errors: see `QuantizedConv`.

    Source: torch.ao.nn.quantized.Conv2d, torch 2.13.
    """

    axes = 2


class QuantizedConvReLU1d(QuantizedConv1d):
    """`QuantizedConv1d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.quantized.ConvReLU1d, torch 2.13."""

    relu = True


class QuantizedConvReLU2d(QuantizedConv2d):
    """`QuantizedConv2d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.quantized.ConvReLU2d, torch 2.13."""

    relu = True


# ---- dynamic ---------------------------------------------------------------------------------------------------------


class DynamicQuantizedConv(IntegerConv):
    """Dynamic quantized convolution: float32 in and out; the input's grid is chosen from the input itself.

    Args:
        weight: this and all others: see `IntegerConv`.
        input_spec: the kind of grid for the input, per tensor.

    Raises (in forward):
        TypeError: integers instead of real values.
        ValueError: an input whose shape does not fit; NaN or infinity in it.

    Source: torch.ao.nn.quantized.dynamic.Conv2d, torch 2.13, which torch's quantize_dynamic never makes.
    """

    def __init__(
        self,
        weight: QTensor,
        bias: np.ndarray | None,
        input_spec: QSpec,
        backend: str,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(weight, bias, backend, stride, padding, dilation, groups)
        check_integer_spec(input_spec, "input")
        if not isinstance(input_spec.granularity, PerTensor):
            raise ValueError(f"{self._kind}: the input's grid is per tensor, got {input_spec}")
        self.input_spec = input_spec

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(N, C, *size) float32, or without N -> (N, M, *places) float32."""
        array = real_input(x, self)
        batched = self._check_shape(array.shape)
        dialect, bias = get_dialect(self.backend), self._bias_or_zeros()
        images = array if batched else array[None]
        with finite_input(array, self):
            y = dialect.dynamic_conv(images, self.weight, bias, self.relu, self.input_spec, self.geometry)
        return Tensor(y if batched else y[0])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input={self.input_spec}"


class DynamicQuantizedConv1d(DynamicQuantizedConv):
    """Dynamic quantized Conv1d: float32 in and out. Arguments and errors: see `DynamicQuantizedConv`.

    Source: torch.ao.nn.quantized.dynamic.Conv1d, torch 2.13, which torch's quantize_dynamic never makes.
    """

    axes = 1


class DynamicQuantizedConv2d(DynamicQuantizedConv):
    """Dynamic quantized Conv2d: float32 in and out. Arguments and errors: see `DynamicQuantizedConv`.

    Source: torch.ao.nn.quantized.dynamic.Conv2d, torch 2.13, which torch's quantize_dynamic never makes.
    """

    axes = 2


class DynamicQuantizedConvReLU1d(DynamicQuantizedConv1d):
    """`DynamicQuantizedConv1d` with a ReLU behind it."""

    relu = True


class DynamicQuantizedConvReLU2d(DynamicQuantizedConv2d):
    """`DynamicQuantizedConv2d` with a ReLU behind it."""

    relu = True
