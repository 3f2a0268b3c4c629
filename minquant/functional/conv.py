"""Convolution as a matrix product: the windows are laid out as rows, the filters as columns (im2col).

Source: Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function, total
from minquant.functional.movement import squeeze, unsqueeze
from minquant.functional.windows import Sizes, add_windows, check_axes, check_fits, pad, per_axis, unpad, windows
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Conv(Function):
    """y[n, m, i] = b[m] + Σ over c, t of w[m, c, t] x[n, c, i·stride + t·dilation], x padded with zeros.

    Over one spatial axis or several; the comments show two. C channels in, M out, G groups, and
    K = C/G · kh · kw, the size of a window in its group. dL/dw = Gradᵀ x by windows; dL/dx gathers, for each
    element of x, Grad w from all windows that saw it.
    """

    floats_only = True

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> np.ndarray:
        _check_dtypes(x, weight, bias)
        self.save(x, weight)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.has_bias = bias is not None
        seen = self._seen(x, weight.shape[2:])  # (N, Ho, Wo, C, kh, kw)
        self.places = seen.shape[: x.ndim - 1]  # (N, Ho, Wo)
        out = self._columns(seen) @ self._filters(weight).swapaxes(1, 2)  # (G, N·Ho·Wo, M/G)
        out = out.swapaxes(0, 1).reshape(*self.places, len(weight))  # (N, Ho, Wo, M)
        out = np.moveaxis(out if bias is None else out + bias, -1, 1)  # (N, M, Ho, Wo)
        return np.ascontiguousarray(out)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, weight = self.saved
        M, count = len(weight), math.prod(self.places)
        rows = np.moveaxis(grad, 1, -1).reshape(count, M)  # (N, M, Ho, Wo) -> (N·Ho·Wo, M)
        by_group = rows.reshape(count, self.groups, M // self.groups).swapaxes(0, 1)  # (G, N·Ho·Wo, M/G)
        by_x = by_weight = None
        if self.needs_grad[0]:
            by_x = self._by_x(by_group @ self._filters(weight), x, weight.shape[2:])
        if self.needs_grad[1]:
            columns = self._columns(self._seen(x, weight.shape[2:]))
            by_weight = (by_group.swapaxes(1, 2) @ columns).reshape(weight.shape)  # (G, M/G, K) -> (M, C/G, kh, kw)
        return (by_x, by_weight, total(rows, 0)) if self.has_bias else (by_x, by_weight)

    def _filters(self, weight: np.ndarray) -> np.ndarray:
        """(M, C/G, kh, kw) -> (G, M/G, K)."""
        return weight.reshape(self.groups, len(weight) // self.groups, math.prod(weight.shape[1:]))

    def _seen(self, x: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
        """(N, C, H, W) -> (N, Ho, Wo, C, kh, kw)."""
        seen = windows(pad(x, self.padding), kernel, self.stride, self.dilation)  # (N, C, Ho, Wo, kh, kw)
        return np.moveaxis(seen, 1, x.ndim - 1)

    def _columns(self, seen: np.ndarray) -> np.ndarray:
        """(N, Ho, Wo, C, kh, kw) -> (G, N·Ho·Wo, K)."""
        size = math.prod(seen.shape[len(self.places) :]) // self.groups
        return seen.reshape(math.prod(self.places), self.groups, size).swapaxes(0, 1)

    def _by_x(self, columns: np.ndarray, x: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
        """(G, N·Ho·Wo, K) -> (N, C, H, W)."""
        seen = columns.swapaxes(0, 1).reshape(*self.places, x.shape[1], *kernel)  # (N, Ho, Wo, C, kh, kw)
        seen = np.moveaxis(seen, len(self.places), 1)  # (N, C, Ho, Wo, kh, kw)
        padded = [n + sum(p) for n, p in zip(x.shape[2:], self.padding, strict=True)]
        return unpad(add_windows(seen, padded, kernel, self.stride, self.dilation), self.padding)


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
    strides, dilations = per_axis(stride, axes, 1, f"{name}: stride"), per_axis(dilation, axes, 1, f"{name}: dilation")
    pads = padding_of(padding, kernel, strides, dilations, name)
    check_fits([n + sum(p) for n, p in zip(size, pads, strict=True)], kernel, dilations, name)
    batched = np.ndim(input) == axes + 2
    inputs = (input if batched else unsqueeze(input, 0), weight, *(() if bias is None else (bias,)))
    out = Conv.apply(*inputs, stride=strides, padding=pads, dilation=dilations, groups=groups)
    return out if batched else squeeze(out, 0)


def padding_of(
    padding: Sizes | str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], name: str
) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) each axis."""
    if not isinstance(padding, str):
        return tuple((n, n) for n in per_axis(padding, len(kernel), 0, f"{name}: padding"))
    if padding not in ("valid", "same"):
        raise ValueError(f'{name}: padding must be "valid", "same" or integers, got {padding!r}')
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if max(stride) > 1:
        raise ValueError(f'{name}: padding="same" needs stride 1, got {tuple(stride)}: give the padding as integers')
    missing = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((n // 2, n - n // 2) for n in missing)


def check_groups(name: str, groups: int, **channels: int) -> None:
    """ValueError unless groups divides the channels."""
    if groups < 1 or any(n % groups for n in channels.values()):
        told = " and ".join(f"{what}={n}" for what, n in channels.items())
        raise ValueError(f"{name}: groups={groups} must be 1 or more and divide {told}")


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
