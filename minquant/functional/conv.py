"""Convolution as a matrix product: the windows are laid out as rows, the filters as columns (im2col).

Source: Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function, total
from minquant.functional.geometry import Geometry, check_groups
from minquant.functional.movement import squeeze, unsqueeze
from minquant.functional.windows import Sizes, check_axes
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Conv(Function):
    """y[n, m, i] = b[m] + Σ over c, t of w[m, c, t] x[n, c, i·stride + t·dilation], x padded with zeros.

    Over one spatial axis or several; sizes are named as in `Geometry`. dL/dw = Gradᵀ x by windows; dL/dx gathers, for
    each element of x, Grad w from all windows that saw it.
    """

    floats_only = True

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, geometry: Geometry
    ) -> np.ndarray:
        _check_dtypes(x, weight, bias)
        self.save(x, weight)
        self.geometry, self.has_bias = geometry, bias is not None
        by_group = geometry.columns(x) @ geometry.filters(weight).swapaxes(1, 2)  # (G, R, M/G)
        rows = by_group.swapaxes(0, 1).reshape(-1, len(weight))  # (R, M)
        return geometry.images(rows if bias is None else rows + bias, x.shape)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, weight = self.saved
        geometry, M = self.geometry, len(weight)
        rows = np.moveaxis(grad, 1, -1).reshape(-1, M)  # (N, M, Ho, Wo) -> (R, M)
        by_group = rows.reshape(len(rows), geometry.groups, M // geometry.groups).swapaxes(0, 1)  # (G, R, M/G)
        by_x = by_weight = None
        if self.needs_grad[0]:
            by_x = geometry.scatter(by_group @ geometry.filters(weight), x.shape)
        if self.needs_grad[1]:
            by_weight = (by_group.swapaxes(1, 2) @ geometry.columns(x)).reshape(weight.shape)  # (G, M/G, K)
        return (by_x, by_weight, total(rows, 0)) if self.has_bias else (by_x, by_weight)


def _check_dtypes(*arrays: np.ndarray | None) -> None:
    dtypes = [str(a.dtype) for a in arrays if a is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(
            f"convolution: input, weight and bias must have one dtype, got {', '.join(dtypes)}: "
            "convert the input, e.g. with .float()"
        )


# ---- as functions ------------------------------------------------------------------------------------------


def conv1d(
    input: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """The sliding product of an input with filters, over one axis; `conv2d` tells the rest.

    Args:
        input: (N, C, L) or (C, L).
        weight: (M, C/groups, k).
        bias: (M,) or None.
        stride: as for `conv2d`, and so are the next three.
        padding: likewise.
        dilation: likewise.
        groups: likewise.

    Returns:
        (N, M, Lo) or (M, Lo), where Lo = ⌊(L + 2·padding − dilation·(k − 1) − 1) / stride⌋ + 1.

    Raises:
        ValueError: shapes or options that do not fit.
        TypeError: integers, or more than one dtype.
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """The sliding product of an image with filters: y[m, i, j] = b[m] + Σ w[m, c, s, t] x[c, i + s, j + t].

    Args:
        input: (N, C, H, W) or (C, H, W), float32 or float64.
        weight: (M, C/groups, kh, kw), of input's dtype.
        bias: (M,) or None.
        stride: elements from one window to the next, an integer or one for each axis.
        padding: zeros on each side, an integer or one for each axis; "valid" is 0, "same" (stride 1 only) as many
            as keep the size, an odd one behind.
        dilation: elements from one tap of the kernel to the next.
        groups: into how many the channels are divided; each group of outputs sees one group of inputs.

    Returns:
        (N, M, Ho, Wo) or (M, Ho, Wo), where Ho = ⌊(H + 2·padding − dilation·(kh − 1) − 1) / stride⌋ + 1.

    Raises:
        ValueError: shapes or options that do not fit; a kernel larger than the padded input.
        TypeError: integers, or more than one dtype.

    Two ways to add K = C/groups · kh · kw products, here and in torch.nn.functional.conv2d (2.13), differ by at
    most 2 (K + 1) u Σ|w x|, where u is half a step of the dtype at 1.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def _conv(
    name: str,
    axes: int,
    input: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    check_axes(np.shape(input), axes, name)
    size, kernel = np.shape(input)[-axes:], np.shape(weight)[2:]
    _check_shapes(name, axes, np.shape(input), np.shape(weight), None if bias is None else np.shape(bias), groups)
    geometry = Geometry.of(name, kernel, stride, padding, dilation, groups)
    geometry.check_fits(size, name)
    batched = np.ndim(input) == axes + 2
    inputs = (input if batched else unsqueeze(input, 0), weight, *(() if bias is None else (bias,)))
    out = Conv.apply(*inputs, geometry=geometry)
    return out if batched else squeeze(out, 0)


def _check_shapes(
    name: str, axes: int, x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, groups: int
) -> None:
    if len(weight) != axes + 2 or 0 in weight:
        sizes = "kh, kw" if axes == 2 else "k"
        raise ValueError(f"{name}: weight must be (out_channels, in_channels/groups, {sizes}), got shape {weight}")
    channels = x[-1 - axes]
    check_groups(name, groups, in_channels=channels, out_channels=weight[0])
    if weight[1] * groups != channels:
        raise ValueError(
            f"{name}: input has shape {x}, that is {channels} channels, expected {weight[1] * groups} "
            f"(weight has shape {weight}, groups={groups})"
        )
    if bias is not None and bias != weight[:1]:
        raise ValueError(f"{name}: bias has shape {bias}, expected {weight[:1]} (out_channels)")
