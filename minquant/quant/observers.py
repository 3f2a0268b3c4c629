"""Observers watch the values that flow through a place in a model and tell which grid suits them.

An observer is a Module that returns its input unchanged and remembers its range, in float32 buffers:

========================================  ======================================================
`MinMaxObserver`                          smallest and largest value of all batches
`MovingAverageMinMaxObserver`             ``m + c·(x - m)`` from batch to batch
`PerChannelMinMaxObserver`                `MinMaxObserver` for each index along one axis
`MovingAveragePerChannelMinMaxObserver`   the moving average for each index along one axis
`HistogramObserver` (histogram.py)        the range that loses least
========================================  ======================================================

Names, arguments, defaults and arithmetic are torch.ao.quantization's; dtypes and schemes are strings. As
there, a bare observer forgives: infinities and NaN enter the range and show in the scale (HistogramObserver
drops infinities and refuses NaN), and one that saw nothing answers ``(1.0, 0)``.
Source: torch.ao.quantization.observer, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from minquant.nn.module import Module
from minquant.tensor import Tensor

from .grid import affine_grid, float_array, range_of, symmetric_scale
from .spec import Granularity, PerChannel, PerTensor, QParams, QSpec

__all__ = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
]

F32 = np.float32
ZERO = F32(0)
ShareRange = Callable[[np.ndarray, Granularity], tuple[np.ndarray, np.ndarray] | None]
DTYPE_RANGES = {"quint8": (0, 255), "qint8": (-128, 127)}


class ObserverFactory(partial):
    """``factory()`` makes an observer with the arguments given so far; `with_args` adds to them."""

    def with_args(self, **arguments: Any) -> ObserverFactory:
        """A factory with these arguments besides its own."""
        return ObserverFactory(self, **arguments)


class Observer(Module):
    """What all observers share: the grid asked for, the range seen, the arithmetic from one to the other.

    Args:
        granularity: which values share a range; `PerTensor` or another, which decides the schemes allowed.
        dtype: "quint8" or "qint8".
        qscheme: "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine" or "per_channel_symmetric".
        reduce_range: leave one bit unused (0…127 or -64…63), for kernels that add products in int16. A range
            given by `quant_min` and `quant_max` is floor-divided by 2.
        quant_min: smallest integer; given together with `quant_max`, and ``quant_min <= 0 <= quant_max``.
        quant_max: largest integer.
        eps: smallest scale.

    Attributes:
        min_val: smallest value, a float32 buffer of shape ``()`` or ``(C,)``; per tensor inf before any data,
            per channel empty.
        max_val: largest value, likewise.

    Raises:
        ValueError: an unknown dtype; a scheme that is unknown or of the other granularity; a range of
            integers that is half given, empty, without 0 or too wide for the dtype; reduce_range with
            symmetric "quint8" (its zero point, 128, would lie outside 0…127); an eps that is not positive.
    """

    resizable = ("min_val", "max_val")
    share_range: ShareRange | None = None
    """The range of a batch of which this process has a part, None if it is empty (`minquant.train.parallel`)."""

    def __init__(
        self,
        granularity: Granularity,
        dtype: str,
        qscheme: str,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.granularity, self.dtype, self.qscheme, self.reduce_range = (
            granularity,
            dtype,
            qscheme,
            reduce_range,
        )
        self._check_kind()
        self.has_customized_qrange = quant_min is not None or quant_max is not None
        low, high = self._checked_range(quant_min, quant_max) if self.has_customized_qrange else DTYPE_RANGES[dtype]
        self.quant_min, self.quant_max = (low // 2, high // 2) if reduce_range else (low, high)
        if not eps > 0:
            raise ValueError(f"{type(self).__name__}: eps, the smallest scale, must be positive, got {eps!r}")
        self.register_buffer("eps", Tensor(np.array([eps], F32)))
        low, high = self._unseen_range()
        self.register_buffer("min_val", Tensor(np.asarray(low, F32)))
        self.register_buffer("max_val", Tensor(np.asarray(high, F32)))

    @classmethod
    def with_args(cls, **arguments: Any) -> ObserverFactory:
        """A factory for observers with these arguments: ``MinMaxObserver.with_args(dtype="qint8")()``."""
        return ObserverFactory(cls, **arguments)

    # ---- watching ------------------------------------------------------------------------------------------

    def forward(self, x: Any) -> Any:
        """Takes x (array or Tensor) into account and returns it unchanged; an empty x changes nothing.

        Raises:
            TypeError: x is not of floating type.
            ValueError: another number of channels than before, or no such channel axis.
        """
        values = float_array(x, type(self).__name__)
        if values.size or self.share_range:
            self._observe(values)
        return x

    def _observe(self, values: np.ndarray) -> None:
        found = self.share_range(values, self.granularity) if self.share_range else range_of(values, self.granularity)
        if found is None:
            return
        low, high = found
        if self.saw_data:
            if low.shape != self.min_val.shape:
                raise ValueError(
                    f"{type(self).__name__}: expected {self.min_val.shape[0]} channels as before, got "
                    f"{low.shape[0]} ({self.granularity}, shape {values.shape}); "
                    "reset_min_max_vals() starts anew"
                )
            low, high = self._combine(low, high)
        self._set_range(low, high)

    def _combine(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.minimum(self.min_val.data, low), np.maximum(self.max_val.data, high)

    def _set_range(self, low: Any, high: Any) -> None:
        self.min_val.data, self.max_val.data = np.asarray(low, F32), np.asarray(high, F32)

    def reset_min_max_vals(self) -> None:
        """Forgets everything seen."""
        self._set_range(*self._unseen_range())

    def _unseen_range(self) -> tuple[Any, Any]:
        return (np.inf, -np.inf) if isinstance(self.granularity, PerTensor) else ([], [])

    # ---- answering -----------------------------------------------------------------------------------------

    @property
    def saw_data(self) -> bool:
        """Whether any value has been observed."""
        low = self.min_val.data
        if low.ndim:
            return low.size > 0
        return not (low.item() == np.inf and self.max_val.data.item() == -np.inf)

    @property
    def spec(self) -> QSpec:
        """The grid that is asked for, in as few bits as its integers need."""
        return _spec(self.dtype == "qint8", self._symmetric, self.granularity, self.quant_min, self.quant_max)

    def qparams(self) -> QParams:
        """The grid for the range seen.

        Raises:
            ValueError: nothing was seen, or the range is not finite.
        """
        self._refuse_if_unseen()
        return QParams(*self.calculate_qparams(), self.spec)

    @property
    def _symmetric(self) -> bool:
        return self.qscheme.endswith("symmetric")

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range that the grid is chosen for: two float32 arrays of shape ``()`` or ``(C,)``.

        Raises:
            ValueError: nothing was seen.
        """
        self._refuse_if_unseen()
        return self.min_val.data, self.max_val.data

    def _refuse_if_unseen(self) -> None:
        if not self.saw_data:
            raise ValueError(f"{type(self).__name__}: saw no data; run the model on calibration data first")

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of the grid for the range.

        With ``lo = min(min_val, 0)``, ``hi = max(max_val, 0)``, in float32:

        - affine: ``s = max((hi - lo) / (qmax - qmin), eps)``, ``z = clip(qmin - rint(lo / s), qmin, qmax)``;
        - symmetric: ``s = max(max(-lo, hi) / ((qmax - qmin) / 2), eps)``, z = 0 for "qint8"; for "quint8"
          z = 128, or ``(qmin + qmax) // 2`` where quant_min and quant_max were given.

        This is `choose_qparams` with two freedoms of torch's: eps can be chosen, and a range that is not
        finite is not refused but gives a scale that is not finite. (Also torch's: giving 0 and 255 to a
        symmetric "quint8" observer moves its zero point from 128 to 127.)

        Returns:
            float32 scale and int32 zero point of shape ``()``, or ``(C,)`` per channel. If nothing was seen,
            1.0 and 0, of shape ``()``, or ``(1,)`` per channel.

        Raises:
            ValueError: a minimum above its maximum.

        Source: UniformQuantizationObserverBase._calculate_qparams, torch 2.13 (there ``(1,)`` per tensor).
        """
        if not self.saw_data:
            shape = () if isinstance(self.granularity, PerTensor) else (1,)
            return np.ones(shape, F32), np.zeros(shape, np.int32)
        low, high = self.range()
        if np.count_nonzero(low > high):
            raise ValueError(f"{type(self).__name__}: min_val must not exceed max_val, got {low} … {high}")
        lo, hi = np.minimum(low, ZERO), np.maximum(high, ZERO)
        bounds = (lo, hi, self.quant_min, self.quant_max, self.eps.data[0])
        with np.errstate(all="ignore"):  # infinite and NaN ranges
            if not self._symmetric:
                return affine_grid(*bounds)
            scale = symmetric_scale(*bounds)
        middle = (self.quant_min + self.quant_max) // 2 if self.has_customized_qrange else 128
        return scale, np.full(scale.shape, 0 if self.dtype == "qint8" else middle, np.int32)

    def extra_repr(self) -> str:
        """The range, for printing."""
        return f"min_val={self.min_val.data}, max_val={self.max_val.data}"

    # ---- checking arguments --------------------------------------------------------------------------------

    def _check_kind(self) -> None:
        name, kind = type(self).__name__, "tensor" if isinstance(self.granularity, PerTensor) else "channel"
        if self.dtype not in DTYPE_RANGES:
            raise ValueError(f"{name}: dtype must be 'quint8' or 'qint8', got {self.dtype!r}")
        schemes = (f"per_{kind}_affine", f"per_{kind}_symmetric")
        if self.qscheme not in schemes:
            raise ValueError(f"{name}: qscheme must be {schemes[0]!r} or {schemes[1]!r}, got {self.qscheme!r}")
        if self.reduce_range and self.dtype == "quint8" and self._symmetric:
            raise ValueError(
                f"{name}: reduce_range with symmetric 'quint8' would put the zero point, 128, outside 0…127; "
                "use dtype='qint8' or an affine qscheme"
            )

    def _checked_range(self, low: int | None, high: int | None) -> tuple[int, int]:
        name, (lowest, highest) = type(self).__name__, DTYPE_RANGES[self.dtype]
        if low is None or high is None:
            raise ValueError(f"{name}: give both quant_min and quant_max or neither, got {low!r} and {high!r}")
        if low >= high:
            raise ValueError(f"{name}: quant_min must be below quant_max, got {low} and {high}")
        if not low <= 0 <= high:
            raise ValueError(f"{name}: quant_min … quant_max must hold 0, got {low} … {high}")
        if low < lowest or high > highest:
            raise ValueError(f"{name}: {low} … {high} does not fit {self.dtype!r}, which holds {lowest} … {highest}")
        return int(low), int(high)


@lru_cache(maxsize=1024)
def _spec(signed: bool, symmetric: bool, granularity: Granularity, qmin: int, qmax: int) -> QSpec:
    bits = max(2, qmax.bit_length() + signed, (-qmin - 1).bit_length() + signed)
    return QSpec(bits, signed, symmetric, granularity, qmin, qmax)


class MinMaxObserver(Observer):
    """Smallest and largest value of everything seen. Arguments and errors: see `Observer`.

    Source: torch.ao.quantization.observer.MinMaxObserver, torch 2.13.
    """

    def __init__(
        self,
        dtype: str = "quint8",
        qscheme: str = "per_tensor_affine",
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = 2.0**-23,
    ) -> None:
        super().__init__(PerTensor(), dtype, qscheme, reduce_range, quant_min, quant_max, eps)


class PerChannelMinMaxObserver(Observer):
    """Smallest and largest value for each index along `ch_axis`. Other arguments and errors: see `Observer`.

    Source: torch.ao.quantization.observer.PerChannelMinMaxObserver, torch 2.13.
    """

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: str = "quint8",
        qscheme: str = "per_channel_affine",
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = 2.0**-23,
    ) -> None:
        super().__init__(PerChannel(ch_axis), dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self.ch_axis = ch_axis


class MovingAverage(Observer):
    """Combines the ranges of batches by ``m + f(f(c)·f(x - m))`` in float32; the first batch is copied."""

    averaging_constant: float

    def _combine(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, old_low, old_high = F32(self.averaging_constant), self.min_val.data, self.max_val.data
        with np.errstate(invalid="ignore"):  # inf - inf
            return old_low + c * (low - old_low), old_high + c * (high - old_high)

    def _set_averaging_constant(self, c: float) -> None:
        if not 0 < c <= 1:
            raise ValueError(
                f"{type(self).__name__}: averaging_constant, the weight of the newest batch, must lie in "
                f"(0, 1], got {c!r}"
            )
        self.averaging_constant = c


class MovingAverageMinMaxObserver(MovingAverage, MinMaxObserver):
    """`MinMaxObserver` that averages over batches: ``m + c·(x - m)``, c = `averaging_constant` in (0, 1].

    Other arguments and errors: see `Observer`.
    Source: torch.ao.quantization.observer.MovingAverageMinMaxObserver, torch 2.13.
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: str = "quint8",
        qscheme: str = "per_tensor_affine",
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = 2.0**-23,
    ) -> None:
        MinMaxObserver.__init__(self, dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self._set_averaging_constant(averaging_constant)


class MovingAveragePerChannelMinMaxObserver(MovingAverage, PerChannelMinMaxObserver):
    """`MovingAverageMinMaxObserver` for each index along `ch_axis`.

    Other arguments and errors: see `Observer`.
    Source: torch.ao.quantization.observer.MovingAveragePerChannelMinMaxObserver, torch 2.13.
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: str = "quint8",
        qscheme: str = "per_channel_affine",
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = 2.0**-23,
    ) -> None:
        PerChannelMinMaxObserver.__init__(self, ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self._set_averaging_constant(averaging_constant)
