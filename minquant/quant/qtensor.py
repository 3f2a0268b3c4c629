"""`QTensor`: integers, and the grid that says what they mean.

Integers of 2 to 4 bits are stored packed, with no bit wasted: the integers' bits follow one another, lowest
bit first, so that two 4-bit integers ``-8, 7`` make the byte ``0x78`` and eight 3-bit integers make three bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minquant.kernels.choice import compiled
from minquant.tensor import Tensor

from .grid import float_array, real_of, to_integers, to_real
from .spec import PerTensor, QParams

__all__ = ["QTensor", "dequantize", "pack_bits", "quantize", "unpack_bits"]

PACKED_UP_TO = 4


def pack_bits(integers: np.ndarray, bits: int) -> np.ndarray:
    """Integers -> bytes that hold `bits` bits of each, lowest bit first; signed ones in two's complement.

    Args:
        integers: any shape, integer type.
        bits: how many low bits of each integer are kept.

    Returns:
        uint8 array of ``ceil(integers.size * bits / 8)`` bytes; unused bits of the last byte are 0.
    """
    if 8 % bits == 0:  # whole codes in every byte
        parts = np.zeros((math.ceil(integers.size * bits / 8), 8 // bits), np.uint8)
        parts.reshape(-1)[: integers.size] = integers.reshape(-1).astype(np.uint8) & np.uint8((1 << bits) - 1)
        packed = parts[:, 0].copy()
        for i in range(1, 8 // bits):
            packed |= parts[:, i] << np.uint8(i * bits)
        return packed
    codes = integers.reshape(-1, 1).astype(np.int64)
    bit_matrix = (codes >> np.arange(bits)) & 1  # (n, bits)
    return np.packbits(bit_matrix.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, signed: bool, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_bits`: bytes -> int8 (`signed`) or uint8 array of the given shape."""
    count = math.prod(shape)
    if 8 % bits == 0:  # whole codes in every byte
        parts = np.empty((packed.size, 8 // bits), np.uint8)
        for i in range(8 // bits):
            parts[:, i] = packed >> np.uint8(i * bits) & np.uint8((1 << bits) - 1)
        codes = parts.reshape(-1)[:count].view(np.int8)
    else:
        bit_matrix = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
        codes = (bit_matrix << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.int8)
    if signed:
        codes -= (codes >> (bits - 1)) << bits
    return codes.astype(np.int8 if signed else np.uint8).reshape(shape)


class QTensor:
    """A tensor of integers on a grid: real value ``(q - zero_point) * scale``.

    Args:
        integers: integer array, every value inside ``qmin … qmax``.
        qparams: the grid.

    Attributes:
        storage: the bytes that are kept: packed (see `pack_bits`) up to 4 bits, else the integers themselves.

    Raises:
        TypeError: the array is not of integer type.
        ValueError: a value off the grid; a shape that does not fit the granularity.
    """

    def __init__(self, integers: np.ndarray, qparams: QParams) -> None:
        integers = np.asarray(integers)
        if integers.dtype.kind not in "iu":
            raise TypeError(
                f"QTensor: expected integers, got {integers.dtype}; minquant.quant.quantize(x, qparams) makes them"
            )
        qparams.expand(integers.shape)
        spec = qparams.spec
        if integers.size and (integers.min() < spec.qmin or integers.max() > spec.qmax):
            raise ValueError(
                f"QTensor: integers must lie in {spec.qmin}…{spec.qmax}, got {integers.min()}…{integers.max()}"
            )
        self._keep(integers, qparams, copy=True)

    @classmethod
    def clipped(cls, integers: np.ndarray, qparams: QParams) -> QTensor:
        """Of integers that arithmetic has just clipped, and that nobody else holds: neither checked nor copied.

        Args:
            integers: of the spec's dtype, in any memory order.
            qparams: one scale for all.
        """
        new = cls.__new__(cls)
        new._keep(integers, qparams, copy=False)
        return new

    def _keep(self, integers: np.ndarray, qparams: QParams, copy: bool) -> None:
        spec = qparams.spec
        self.shape = integers.shape
        self.qparams = qparams
        self._packed = spec.bits <= PACKED_UP_TO
        self.storage = pack_bits(integers, spec.bits) if self._packed else integers.astype(spec.dtype, copy=copy)
        self.storage.flags.writeable = False  # so that kernels may keep what they make of it

    def int_repr(self) -> np.ndarray:
        """The integers, as int8, uint8, int16 or uint16 (torch's name); read-only, unless unpacked for this call."""
        if not self._packed:
            return self.storage
        spec = self.qparams.spec
        return unpack_bits(self.storage, spec.bits, spec.signed, self.shape)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """``int_repr()[index]``; of packed integers, only those rows are unpacked if each has whole bytes."""
        spec = self.qparams.spec
        bits = math.prod(self.shape[1:]) * spec.bits
        if not self._packed or bits % 8:
            return self.int_repr()[index]
        packed = self.storage.reshape(self.shape[0], bits // 8)[index]
        return unpack_bits(packed.reshape(-1), spec.bits, spec.signed, (*index.shape, *self.shape[1:]))

    def dequantize(self) -> np.ndarray:
        """The real values, ``f((q - zero_point) * scale)`` in float32."""
        kernels, spec = compiled("dequantize", self.numel()), self.qparams.spec
        run = spec.granularity.run(self.shape)
        if (
            kernels and self._packed and run and (run * spec.bits) % 8 == 0 == 8 % spec.bits
        ):  # whole bytes share a scale
            grid, values = (run, *self.qparams.flat), (spec.bits, spec.signed, self.numel())
            return kernels.dequantize(self.storage, *values, grid, real_of).reshape(self.shape)
        return to_real(self.int_repr(), self.qparams)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: integers (packed at 2 to 4 bits), float32 scales and int32 zero points.

        A symmetric grid's zero points follow from its `QSpec` and are not stored.
        """
        zero_points = 0 if self.qparams.spec.symmetric else self.qparams.zero_point.size * 4
        return self.storage.nbytes + self.qparams.scale.nbytes + zero_points

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its length along one axis."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Number of integers."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __tensor_function__(self, function: type, inputs: tuple[Any, ...], options: dict[str, Any]) -> QTensor:
        """Runs a differentiable operation on the integers, where it has a meaning there.

        Such an operation maps grid points to grid points and can be done on ``q - zero_point``: relu, reshape,
        transpose, indexing. Everything else is refused: each operand has a scale of its own.
        """
        name = function.__name__.lower()
        if not function.on_grid:  # type: ignore[attr-defined]
            raise TypeError(
                f"{name} has no form on integers: a quantized tensor's integers mean nothing without their scale. "
                "Call .dequantize() first, or put a DeQuantStub before this operation"
            )
        if not isinstance(self.qparams.spec.granularity, PerTensor):
            raise TypeError(
                f"{name} of a quantized tensor needs one scale for the whole tensor; this one is "
                f"{self.qparams.spec}. Call .dequantize() first"
            )
        zero_point = int(self.qparams.zero_point)
        centred = self.int_repr().astype(np.int32) - zero_point
        return QTensor(function().forward(centred, *inputs[1:], **options) + zero_point, self.qparams)

    def reshape(self, *shape: int) -> QTensor:
        """The same integers in another shape."""
        from minquant import functional

        return functional.reshape(self, shape)  # type: ignore[return-value]

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> QTensor:
        """The same integers with the axes `start_dim` … `end_dim` made one."""
        from minquant import functional

        return functional.flatten(self, start_dim, end_dim)  # type: ignore[return-value]

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(
            "arithmetic on a quantized tensor is refused: its integers mean nothing without their scale, and the "
            "result needs a grid of its own. Call .dequantize() first, put a DeQuantStub before this operation, or let "
            "an nn.FloatFunctional do it: self.skip.add(x, y) for x + y"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = _refuse
    __array_ufunc__ = None  # so that `array + qtensor` comes here too, and not element by element

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "a QTensor is no plain array: say .int_repr() for its integers or .dequantize() for its values. In a model "
            "put a DeQuantStub before what works on real values"
        )

    def __repr__(self) -> str:
        return f"QTensor({self.int_repr()}, {self.qparams})"


def quantize(x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
    """Real values -> integers: ``q = clip(rint(f(x · f(1/s))) + z, qmin, qmax)``.

    Args:
        x: float array or Tensor of any shape that fits the granularity; float64 is rounded to float32 first.
            Infinities become the end of the grid.
        qparams: the grid.

    Returns:
        QTensor of the shape of `x`.

    Raises:
        TypeError: `x` is not of floating type.
        ValueError: NaN in `x`; a shape that does not fit the granularity.

    The error of dequantizing is at most ``s/2`` inside the range (see the module's text).
    Source: the rule of torch.fake_quantize_per_tensor_affine, torch 2.13, and of torchao 0.18's affine primitives;
    Jacob et al. 2018, equation 1.
    """
    return QTensor(to_integers(float_array(x, "quantize"), qparams), qparams)


def dequantize(qtensor: QTensor) -> np.ndarray:
    """Integers -> real values: ``f((q - zero_point) · scale)``, a float32 array of the same shape."""
    return qtensor.dequantize()
