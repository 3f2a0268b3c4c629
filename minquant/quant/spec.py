"""Which grid: `QSpec` says how many bits and how the range is shared, `QParams` says where the grid lies.

A quantization grid is the set of real values ``(q - zero_point) * scale`` for the integers
``qmin <= q <= qmax``. `QSpec` is decided by a person before any data is seen; `QParams` are computed from
the range of the data (`minquant.quant.choose_qparams`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor", "PerToken", "QParams", "QSpec"]

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def is_integer(value: object) -> bool:
    """Whether it is Python's or NumPy's integer; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True)
class PerTensor:
    """One scale and one zero point for the whole tensor: arrays of shape ``()``."""

    def qparams_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape: ``()``."""
        return ()

    def expand(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """``()`` broadcasts against every shape as it is."""
        return values

    def run(self, shape: tuple[int, ...]) -> int:
        """How many neighbours in memory share a scale: all."""
        return math.prod(shape)

    def min_max(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest element: two arrays of shape ``()``."""
        return x.min(), x.max()


@dataclass(frozen=True)
class PerChannel:
    """One scale and zero point for each index along `axis`: arrays of shape ``(C,)``.

    Args:
        axis: the channel axis; 0 (the output channels) for the weight of Linear and Conv.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        if not is_integer(self.axis):
            raise ValueError(f"PerChannel: axis must be an integer, got {self.axis!r}")

    def qparams_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape: ``(shape[axis],)``."""
        return (shape[self._checked_axis(shape)],)

    def expand(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """``(C,)`` -> ``(1, …, C, …, 1)``, which broadcasts against `shape`."""
        ones = [1] * len(shape)
        ones[self._checked_axis(shape)] = -1
        return values.reshape(ones)

    def run(self, shape: tuple[int, ...]) -> int:
        """How many neighbours in memory share a scale: those behind the channel axis."""
        return math.prod(shape[self._checked_axis(shape) + 1 :])

    def min_max(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest element of each channel: two arrays of shape ``(C,)``."""
        axis = self._checked_axis(x.shape)
        others = tuple(a for a in range(x.ndim) if a != axis)
        return x.min(axis=others), x.max(axis=others)

    def _checked_axis(self, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            axes = f"axes 0 to {len(shape) - 1}" if shape else "no axes"
            raise ValueError(
                f"PerChannel(axis={self.axis}): a tensor of shape {shape} has {axes}; "
                "the weight of a Linear has its output channels on axis 0"
            )
        return self.axis % len(shape)


@dataclass(frozen=True)
class PerGroup:
    """One scale and zero point for each run of `group_size` values along the last axis.

    For a weight ``(N, K)`` the scales have shape ``(N, K / group_size)``.

    Args:
        group_size: values that share a scale; must divide the last axis.
    """

    group_size: int

    def __post_init__(self) -> None:
        if not is_integer(self.group_size) or self.group_size < 1:
            raise ValueError(f"PerGroup: expected a positive integer group_size, got {self.group_size!r}")

    def qparams_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape: ``(…, K / group_size)``."""
        if not shape or shape[-1] % self.group_size:
            last = shape[-1] if shape else "no"
            raise ValueError(
                f"PerGroup({self.group_size}): the group size must divide the last axis, which has "
                f"{last} values (shape {shape}); choose a divisor of it"
            )
        return (*shape[:-1], shape[-1] // self.group_size)

    def expand(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """``(…, K / group_size)`` -> ``(…, K)``, each scale repeated over its group."""
        return np.repeat(values, self.group_size, axis=-1)

    def run(self, shape: tuple[int, ...]) -> int:
        """How many neighbours in memory share a scale."""
        return self.group_size

    def min_max(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest element of each group: two arrays ``(…, K / group_size)``."""
        groups = x.reshape(*self.qparams_shape(x.shape), self.group_size)
        return groups.min(axis=-1), groups.max(axis=-1)


@dataclass(frozen=True)
class PerToken:
    """One scale and zero point for each row (all axes but the last): arrays of shape ``x.shape[:-1]``."""

    def qparams_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape: ``shape[:-1]``."""
        if not shape:
            raise ValueError("PerToken: expected a tensor with at least one axis, got a 0-d one; use PerTensor()")
        return shape[:-1]

    def expand(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """``shape[:-1]`` -> ``(*shape[:-1], 1)``, which broadcasts against `shape`."""
        return values[..., np.newaxis]

    def run(self, shape: tuple[int, ...]) -> int:
        """How many neighbours in memory share a scale: a row."""
        return shape[-1]

    def min_max(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest element of each row: two arrays of shape ``x.shape[:-1]``."""
        self.qparams_shape(x.shape)
        return x.min(axis=-1), x.max(axis=-1)


Granularity = PerTensor | PerChannel | PerGroup | PerToken


@dataclass(frozen=True)
class QSpec:
    """The kind of grid: how many integers, which ones, and how much of a tensor shares a scale.

    Args:
        bits: 2 to 8, or 16 (16 bits: grids and fake-quantization, but no integer layers).
        signed: integers ``-2^(bits-1) … 2^(bits-1)-1`` if true, else ``0 … 2^bits-1``.
        symmetric: real zero sits at the middle of the grid (zero point 0 if signed), and the scale covers
            ``±max|x|``. If false ("affine"), the scale covers ``min … max`` and the zero point moves.
        granularity: `PerTensor`, `PerChannel`, `PerGroup` or `PerToken`.
        qmin: smallest integer used, if the full range is not wanted.
        qmax: largest integer used.

    Raises:
        ValueError: bits outside 2–8 and 16; ``qmin >= qmax``; a range that `bits` cannot hold; a symmetric
            signed range without 0.
        TypeError: qmin or qmax that is no integer; a granularity that is none.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = False
    granularity: Granularity = PerTensor()
    qmin: int = None  # type: ignore[assignment]  # the full range's ends, if left out
    qmax: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not is_integer(self.bits) or self.bits not in (2, 3, 4, 5, 6, 7, 8, 16):
            raise ValueError(f"QSpec: bits must be 2 to 8, or 16; got {self.bits!r}")
        if not isinstance(self.granularity, Granularity):
            raise TypeError(
                "QSpec: granularity must be PerTensor(), PerChannel(axis), PerGroup(size) or PerToken(), "
                f"got {self.granularity!r}"
            )
        lowest, highest = self._full_range()
        for name, end in (("qmin", lowest), ("qmax", highest)):
            value = getattr(self, name)
            if not (value is None or is_integer(value)):
                raise TypeError(f"QSpec: {name} must be an integer, got {value!r}")
            object.__setattr__(self, name, end if value is None else int(value))
        if self.qmin >= self.qmax:
            raise ValueError(f"QSpec: qmin must be below qmax, got qmin={self.qmin}, qmax={self.qmax}")
        if self.qmin < lowest or self.qmax > highest:
            kind = "signed" if self.signed else "unsigned"
            raise ValueError(
                f"QSpec: {self.qmin}…{self.qmax} does not fit {self.bits} {kind} bits ({lowest}…{highest})"
            )
        if self.symmetric and not self.qmin <= self.symmetric_zero_point <= self.qmax:
            raise ValueError(f"QSpec: a symmetric signed grid needs 0 inside {self.qmin}…{self.qmax}")

    def _full_range(self) -> tuple[int, int]:
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def symmetric_zero_point(self) -> int:
        """Where a symmetric grid puts real zero: 0 if signed, else the middle (128 of 0…255)."""
        if self.signed:
            return 0
        if (self.qmin, self.qmax) == self._full_range():
            return 1 << (self.bits - 1)
        return (self.qmin + self.qmax) // 2

    @cached_property
    def dtype(self) -> np.dtype:
        """NumPy type that `QTensor.int_repr` has: int8, uint8, int16 or uint16."""
        width = 8 if self.bits <= 8 else 16
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        name = f"{'int' if self.signed else 'uint'}{self.bits}"
        custom = "" if (self.qmin, self.qmax) == self._full_range() else f" [{self.qmin}…{self.qmax}]"
        where = {
            PerTensor: "per tensor",
            PerChannel: "per channel",
            PerGroup: f"per group of {getattr(self.granularity, 'group_size', '')}",
            PerToken: "per token",
        }[type(self.granularity)]
        return f"{name}{custom} {kind} {where}"


@dataclass(frozen=True, eq=False)
class QParams:
    """Where a grid lies: ``x ≈ (q - zero_point) * scale``.

    Args:
        scale: real distance between neighbouring integers; float32, positive, finite, not subnormal.
            Shape ``()`` per tensor, ``(C,)`` per channel, ``(…, groups)`` per group, ``(…)`` per token.
        zero_point: the integer that stands for real 0; int32, same shape, inside ``qmin … qmax``.
        spec: the kind of grid.

    Raises:
        ValueError: a scale that is zero, negative, NaN, infinite or subnormal; a zero point outside the grid;
            shapes that do not match the granularity.
        TypeError: a zero point that is not of integer type.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QSpec

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, dtype=np.float32)
        zero_point = np.asarray(self.zero_point)
        if zero_point.dtype.kind not in "iu":
            raise TypeError(f"QParams: zero_point must be integers, got {zero_point.dtype}")
        self._check_shapes(scale, zero_point)
        self._check_values(scale, zero_point)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", _stretched(zero_point.astype(np.int32), scale.shape))

    def _check_values(self, scale: np.ndarray, zero_point: np.ndarray) -> None:
        """Looks at the extremes, which a NaN would be."""
        if scale.size and not (SMALLEST_NORMAL <= _least(scale) and _most(scale) < math.inf):
            bad = ~(np.isfinite(scale) & (scale >= SMALLEST_NORMAL))
            raise ValueError(
                "QParams: a scale must be positive, finite and at least 2^-126 (smaller ones are subnormal, and their "
                f"reciprocal may overflow); got {scale[bad].flat[0]}"
                + (f" and {bad.sum() - 1} more" if bad.sum() > 1 else "")
                + "; choose_qparams(x_min, x_max, spec) makes one from a range"
            )
        qmin, qmax = self.spec.qmin, self.spec.qmax
        if zero_point.size and not (qmin <= _least(zero_point) and _most(zero_point) <= qmax):
            outside = (zero_point < qmin) | (zero_point > qmax)
            raise ValueError(
                f"QParams: the zero point must lie on the grid {qmin}…{qmax}, so that real 0 "
                f"is exact; got {zero_point[outside].flat[0]}"
            )

    def _check_shapes(self, scale: np.ndarray, zero_point: np.ndarray) -> None:
        if zero_point.ndim and zero_point.shape != scale.shape:
            raise ValueError(
                f"QParams: scale has shape {scale.shape} and zero_point {zero_point.shape}; they must be equal"
            )
        wanted = {PerTensor: 0, PerChannel: 1}.get(type(self.spec.granularity))
        if wanted is not None and scale.ndim != wanted:
            raise ValueError(
                f"QParams: {self.spec.granularity} has {wanted}-d scales, got shape {scale.shape}"
                + ("; use PerChannel(axis) for one scale a channel" if wanted == 0 else "")
            )

    def expand(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point, shaped to broadcast against a tensor of this shape.

        Raises:
            ValueError: the tensor has another number of channels, groups or tokens than these parameters.
        """
        self.check_fits(shape)
        granularity = self.spec.granularity
        return granularity.expand(self.scale, shape), granularity.expand(self.zero_point, shape)

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32, np.float32]:
        """``f(1/scale)``, scale and zero point, float32 (scales,), then qmin and qmax: as kernels take them."""
        scale, zero_point = self.scale.reshape(-1), self.zero_point.reshape(-1).astype(np.float32)
        return np.float32(1) / scale, scale, zero_point, np.float32(self.spec.qmin), np.float32(self.spec.qmax)

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Refuses a tensor of a shape that these parameters are not made for.

        Raises:
            ValueError: the tensor has another number of channels, groups or tokens.
        """
        expected = self.spec.granularity.qparams_shape(shape)
        if self.scale.shape != expected:
            raise ValueError(
                f"a tensor of shape {shape} with {self.spec.granularity} needs scales of shape {expected}, got "
                f"{self.scale.shape}"
            )

    def __repr__(self) -> str:
        if self.scale.ndim == 0:
            return f"QParams(scale={self.scale:.7g}, zero_point={self.zero_point}, {self.spec})"
        return f"QParams({self.scale.size} scales {self.scale.min():.4g}…{self.scale.max():.4g}, {self.spec})"


def _least(values: np.ndarray) -> Any:
    return values.min() if values.ndim else values.item()  # NumPy is slow with one number


def _most(values: np.ndarray) -> Any:
    return values.max() if values.ndim else values.item()


def _stretched(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values if values.shape == shape else np.broadcast_to(values, shape)
