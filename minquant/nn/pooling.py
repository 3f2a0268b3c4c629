"""Pooling as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.functional.pool import AdaptiveSizes, adaptive_sizes
from minquant.functional.windows import Sizes, per_axis
from minquant.nn.module import Module
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class _Pool(Module):
    def __init__(self, kernel_size: Sizes, stride: Sizes | None, padding: Sizes) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride
        for what, least in (("kernel_size", 1), ("stride", 1), ("padding", 0)):
            per_axis(getattr(self, what), 2, least, f"{type(self).__name__}: {what}")

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    """The largest element of each window: (N, C, H, W) -> (N, C, Ho, Wo), or without N. See `functional.max_pool2d`.

    Works on quantized integers as they are.
    """

    def __init__(
        self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        per_axis(dilation, 2, 1, "MaxPool2d: dilation")
        self.dilation = dilation

    def forward(self, input: TensorLike) -> Tensor:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={self.dilation}"


class AvgPool2d(_Pool):
    """The mean of each window: (N, C, H, W) -> (N, C, Ho, Wo), or without N. See `functional.avg_pool2d`."""

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        super().__init__(kernel_size, stride, padding)

    def forward(self, input: TensorLike) -> Tensor:
        return F.avg_pool2d(input, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """The mean of each of Ho × Wo regions: (N, C, H, W) -> (N, C, Ho, Wo), or without N.

    Args:
        output_size: Ho and Wo, or one integer for both; None keeps the input's size. See
            `functional.adaptive_avg_pool2d`.
    """

    def __init__(self, output_size: AdaptiveSizes) -> None:
        super().__init__()
        adaptive_sizes(output_size, "AdaptiveAvgPool2d")
        self.output_size = output_size

    def forward(self, input: TensorLike) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"
