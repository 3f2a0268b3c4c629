"""A quantized tensor on a device, and the grids and weights that modules keep.

Integers live on the device, and a grid is two numbers (or two for each channel) that the host must know as well: from
them minquant's own functions compute, once, what a layer needs of its scales. So a `Grid` keeps buffers, which
`state_dict` shows and `load_state_dict` fills, and reads them into `QParams` when it is first asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.kernels import cuda
from minquant.kernels.cuda import Columns
from minquant.quant import QParams, QTensor
from minquant.quant.qtensor import PACKED_UP_TO

__all__ = ["Grid", "QuantizedTensor", "Weight", "integers_of"]


class QuantizedTensor:
    """Integers on a device, and the grid that says what they mean: minquant's `QTensor` with a torch tensor in it.

    Attributes:
        integers: int8 or uint8.
        qparams: the grid: one scale.
    """

    def __init__(self, integers: Tensor, qparams: QParams) -> None:
        self.integers, self.qparams = integers, qparams

    def int_repr(self) -> Tensor:
        """The integers."""
        return self.integers

    def dequantize(self) -> Tensor:
        """The real values, ``f((q - zero_point) · scale)`` in float32."""
        return (self.integers.int() - int(self.qparams.zero_point)).float() * float(self.qparams.scale)

    @property
    def shape(self) -> torch.Size:
        """Of the integers, as `ndim`, `dim`, `size` and `numel`."""
        return self.integers.shape

    @property
    def ndim(self) -> int:
        return self.integers.ndim

    def dim(self) -> int:
        """As `ndim`."""
        return self.integers.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its length along one axis."""
        return self.integers.size() if dim is None else self.integers.size(dim)

    def numel(self) -> int:
        """How many integers."""
        return self.integers.numel()

    def reshape(self, *shape: Any) -> QuantizedTensor:
        """The same integers in another shape."""
        return QuantizedTensor(self.integers.reshape(*shape), self.qparams)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> QuantizedTensor:
        """The same integers with the axes `start_dim` … `end_dim` made one."""
        return QuantizedTensor(self.integers.flatten(start_dim, end_dim), self.qparams)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> QuantizedTensor:
        """What torch's modules and functions may do to it: see `ON_INTEGERS`; all else is refused."""
        name = getattr(function, "__name__", str(function))
        if name not in ON_INTEGERS:
            raise TypeError(
                f"{name} has no form on integers: a quantized tensor's integers mean nothing without their scale. Put "
                "a DeQuantStub before it, or a FloatFunctional in its place, in the minquant model"
            )
        return ON_INTEGERS[name](*args, **(kwargs or {}))

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(
            "arithmetic on a quantized tensor is refused: its integers mean nothing without their scale, and the "
            "result needs a grid of its own. In the minquant model let an nn.FloatFunctional do it"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = _refuse

    def __repr__(self) -> str:
        return f"QuantizedTensor({self.integers}, {self.qparams})"


def _relu(x: QuantizedTensor, inplace: bool = False) -> QuantizedTensor:
    return QuantizedTensor(x.integers.clamp(min=int(x.qparams.zero_point)), x.qparams)


def _max_pool2d(x: QuantizedTensor, *args: Any, **kwargs: Any) -> QuantizedTensor:
    """Through float32, in which every integer here is exact: torch has no kernel for bytes on every device."""
    pooled = torch.nn.functional.max_pool2d(x.integers.float(), *args, **kwargs)
    return QuantizedTensor(pooled.to(x.integers.dtype), x.qparams)


def _dropout(x: QuantizedTensor, p: float, training: bool, inplace: bool = False) -> QuantizedTensor:
    if training:
        raise TypeError("Dropout on integers in training mode: a converted model is for inference, call .eval()")
    return x


def _moved(name: str) -> Callable[..., QuantizedTensor]:
    """An operation that only moves elements."""
    return lambda x, *args, **kwargs: QuantizedTensor(getattr(torch, name)(x.integers, *args, **kwargs), x.qparams)


ON_INTEGERS: dict[str, Callable[..., QuantizedTensor]] = {
    **{name: _moved(name) for name in ("flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze")},
    "relu": _relu,
    "max_pool2d": _max_pool2d,
    "dropout": _dropout,
}


# ---- what modules keep -----------------------------------------------------------------------------------------------


class Grid(torch.nn.Module):
    """Scale and zero point of a grid, as buffers.

    Args:
        qparams: the grid.
    """

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.spec = qparams.spec
        self.register_buffer("scale", torch.tensor(np.array(qparams.scale)))
        self.register_buffer("zero_point", torch.tensor(np.array(qparams.zero_point)))
        self._read: QParams | None = None

    @property
    def qparams(self) -> QParams:
        """The grid as minquant has it; the same object until the buffers are loaded anew or moved."""
        if self._read is None:
            if self.scale.dtype != torch.float32:
                raise TypeError(f"a grid's scale must be float32, got {self.scale.dtype}: move a quantized model with "
                                ".to(device) alone, its integers have no other precision")  # fmt: skip
            self._read = QParams(self.scale.cpu().numpy(), self.zero_point.cpu().numpy(), self.spec)
        return self._read

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _forget(self) -> None:
        self._read = None

    def extra_repr(self) -> str:
        return repr(self.qparams)


class Weight(Grid):
    """Integers of a weight and their grid, as buffers; up to 4 bits they stay packed, as in a `QTensor`.

    Args:
        weight: output channels on axis 0.
    """

    def __init__(self, weight: QTensor) -> None:
        super().__init__(weight.qparams)
        self.shape = weight.shape
        self.register_buffer("integers", torch.tensor(weight.storage))
        self._columns: list[Columns] | None = None
        self._has_zero_points: bool | None = None
        self._group_sums: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        """Whether several integers share a byte."""
        return self.spec.bits <= PACKED_UP_TO

    @property
    def has_zero_points(self) -> bool:
        """Whether they differ from 0 once the integers are signed, so that there is something to take out."""
        if self._has_zero_points is None:
            self._has_zero_points = bool((self.qparams.zero_point != (0 if self.spec.signed else 128)).any())
        return self._has_zero_points

    def unpacked(self) -> Tensor:
        """int8 or uint8, in the weight's shape."""
        if not self.is_packed:
            return self.integers
        return cuda.unpack_bits(self.integers, self.spec.bits, self.spec.signed, self.shape)

    def signed(self) -> tuple[Tensor, Tensor]:
        """int8 integers and int32 zero points, both 128 lower where they were unsigned."""
        if self.spec.signed:
            return self.unpacked(), self.zero_point
        return cuda.lowered(self.unpacked()), self.zero_point - 128

    def columns(self, groups: int = 1) -> list[Columns]:
        """The right operand of each group's product; kept, unless that would undo the packing."""
        if self._columns is not None:
            return self._columns
        filters = self.signed()[0].reshape(groups, self.shape[0] // groups, -1)  # (G, M/G, K)
        columns = [cuda.columns_of(f.T) for f in filters]
        self._columns = None if self.is_packed else columns
        return columns

    def group_sums(self) -> Tensor:
        """``Σ qw`` of each group of a weight (N, K), int32 (N, G); kept."""
        if self._group_sums is None:
            groups = self.signed()[0].reshape(*self.scale.shape, -1)
            self._group_sums = groups.sum(-1, dtype=torch.int32)
        return self._group_sums

    def qtensor(self) -> QTensor:
        """The weight as minquant has it."""
        return QTensor(self.unpacked().cpu().numpy(), self.qparams)

    def _forget(self) -> None:
        super()._forget()
        self._columns = self._has_zero_points = self._group_sums = None

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {super().extra_repr()}"


def integers_of(x: Any, module: Any) -> QuantizedTensor:
    """The input of a layer on integers.

    Raises:
        TypeError: real values.
    """
    if not isinstance(x, QuantizedTensor):
        raise TypeError(
            f"{type(module).__name__} '{module.path}': expected a quantized tensor, got {type(x).__name__}: there is "
            "no QuantStub before it"
        )
    return x
