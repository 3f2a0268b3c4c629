"""Convolutions as modules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.functional.geometry import Geometry, check_groups
from minquant.functional.windows import Sizes, check_axes, per_axis
from minquant.nn import init
from minquant.nn.module import Module, Parameter
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class _Conv(Module):
    axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"{name}: channels must be positive, got {in_channels=}, {out_channels=}")
        check_groups(name, groups, in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis(kernel_size, self.axes, 1, f"{name}: kernel_size")
        geometry = Geometry.of(name, self.kernel_size, stride, padding, dilation, groups)
        self.stride, self.dilation = geometry.stride, geometry.dilation
        self.padding = padding if isinstance(padding, str) else tuple(before for before, _ in geometry.padding)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(np.empty(shape, np.float32))
        self.register_parameter("bias", Parameter(np.empty(out_channels, np.float32)) if bias else None)
        self.reset_parameters()

    @property
    def geometry(self) -> Geometry:
        """How the kernel slides."""
        name = type(self).__name__
        return Geometry.of(name, self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: TensorLike) -> Tensor:
        self._check_channels(np.shape(input))
        conv = F.conv1d if self.axes == 1 else F.conv2d
        return conv(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        name = type(self).__name__
        check_axes(shape, self.axes, name)
        if shape[-1 - self.axes] != self.in_channels:
            raise ValueError(
                f"{name}: input has shape {shape}, that is {shape[-1 - self.axes]} channels, "
                f"expected in_channels={self.in_channels}"
            )

    def extra_repr(self) -> str:
        padded = self.padding if isinstance(self.padding, str) else self.padding if any(self.padding) else None
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}",
            f"padding={padded}" * (padded is not None),
            f"dilation={self.dilation}" * (set(self.dilation) != {1}),
            f"groups={self.groups}" * (self.groups != 1),
            "bias=False" * (self.bias is None),
        ]
        return ", ".join(filter(None, parts))


class Conv1d(_Conv):
    """A convolution over one axis: (N, C, L) -> (N, M, Lo), or without N. See `functional.conv1d`.

    Args:
        in_channels, out_channels: C and M.
        kernel_size: k.
        stride, padding, dilation, groups: as for `functional.conv2d`.
        bias: add a number to each output channel.

    Initial values, uniform within ±1/√(C/groups · k), are bit-equal to torch's after the same `manual_seed`.

    Raises:
        ValueError: sizes below 1, groups that do not divide the channels; an input that does not fit.
        TypeError: an input that is not float32, like the weight.
    """

    axes = 1


class Conv2d(_Conv):
    """A convolution over two axes: (N, C, H, W) -> (N, M, Ho, Wo), or without N. See `functional.conv2d`.

    Args:
        in_channels, out_channels: C and M.
        kernel_size: kh and kw, or one integer for both.
        stride, padding, dilation, groups: as for `functional.conv2d`.
        bias: add a number to each output channel.

    Initial values, uniform within ±1/√(C/groups · kh · kw), are bit-equal to torch's after the same `manual_seed`.

    Raises:
        ValueError: sizes below 1, groups that do not divide the channels; an input that does not fit.
        TypeError: an input that is not float32, like the weight.
    """

    axes = 2
