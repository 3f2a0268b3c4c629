"""HistogramObserver: watch the distribution of the values and choose the range that loses least.

The smallest and largest value are a poor range when a few outliers set them: all other values then share
the few integers that are left. This observer keeps a histogram of everything it has seen and asks which
range, cut from both ends, would cost the least squared error. The steps:

1. **Count** each batch in `bins` bins of equal width between the smallest and the largest value so far.
2. **Rebin** the old histogram when a batch widens the range: each bin is split into 16 parts, and each part
   goes to the new bin that holds its middle.
3. **Search**. Start from the whole range. Walk inwards in steps of 10⁻⁵ of the mass, each time on the side
   where the step crosses more bins (the emptier tail), and stop at the first cut that raises the error.
4. **Error of a cut**. The bins from its first to its last are covered by 256 grid cells. A value at
   distance t from the middle of its cell loses t². With the values of a bin spread evenly, of density ρ =
   count / width, a stretch from t₁ to t₂ loses ``ρ ∫ t² dt = ρ (t₂³ - t₁³) / 3``, and a bin that reaches
   over several cells loses the sum of its stretches. Bins outside the cut belong to the first or the last
   cell, where t is large.

Every step rounds where torch rounds: histogram, range, scale and zero point are torch's to the last bit.

Source: torch.ao.quantization.observer.HistogramObserver, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from minquant.kernels.fma import fma
from minquant.tensor import Tensor

from .cascade import cascade_sum
from .observers import Observer
from .spec import PerTensor

__all__ = ["HistogramObserver"]

F32 = np.float32
UPSAMPLE = 16  # parts that a bin is split into when the range grows
GRID_CELLS = 256  # integers of an 8-bit grid; torch uses all 256 even where the range is reduced
STEP = 1e-5  # share of the mass that the search leaves out at each step
CUTS_AT_ONCE = 8  # cuts whose errors are computed together


class HistogramObserver(Observer):
    """Chooses the range whose 8-bit grid loses the least squared error on everything seen.

    The module's text explains the algorithm. Infinite values are left out. For the arguments besides `bins`,
    and for their errors, see `Observer`.

    Args:
        bins: number of bins of the histogram.
        dtype: "quint8" or "qint8".
        qscheme: "per_tensor_affine" or "per_tensor_symmetric".
        reduce_range: leave one of the 8 bits unused.
        quant_min: smallest integer, together with `quant_max`.
        quant_max: largest integer.
        eps: smallest scale.

    Attributes:
        histogram: counts, a float32 buffer of shape ``(bins,)``.

    Raises:
        ValueError: bins that is no positive integer; when called, NaN, or a range too wide for float32.

    Histogram, range, scale and zero point equal torch's to the last bit, provided that a batch puts fewer
    than 2²⁴ values into a bin, and that a range which grows is at least 2⁻¹²⁶ wide (below, where bin edges
    come out of order, the histogram may differ, scale and zero point do not). Refused here: a range whose
    width overflows float32 (torch's scale is NaN), and reduce_range with symmetric "quint8" (torch's zero
    point is off the grid).
    Source: torch.ao.quantization.observer.HistogramObserver, torch 2.13.
    """

    def __init__(
        self,
        bins: int = 2048,
        dtype: str = "quint8",
        qscheme: str = "per_tensor_affine",
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = 2.0**-23,
    ) -> None:
        if not isinstance(bins, (int, np.integer)) or bins < 1:
            raise ValueError(f"HistogramObserver: bins must be a positive integer, got {bins!r}")
        super().__init__(PerTensor(), dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self.bins = int(bins)
        self.register_buffer("histogram", Tensor(np.zeros(self.bins, F32)))

    def _observe(self, values: np.ndarray) -> None:
        if np.isnan(values).any():
            raise ValueError(
                f"HistogramObserver: {np.isnan(values).sum()} of {values.size} values are NaN, "
                "which fit no bin; find where they come from"
            )
        finite = values[np.isfinite(values)]
        if not finite.size:
            return
        old_low, old_high = self.min_val.data, self.max_val.data
        low, high = self._combine(finite.min(), finite.max())
        histogram = count(finite, self.bins, low, high)
        if self.saw_data:
            histogram += rebin(self.histogram.data, old_low, old_high, low, high)
        self._set_range(low, high)
        self.histogram.data = histogram

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range that the search settles on, two float32 arrays of shape ``()``.

        Raises:
            ValueError: nothing was seen.
        """
        low, high = super().range()
        first, last = search(self.histogram.data, low, high)
        bin_width = (high - low) / F32(self.bins)
        return np.asarray(low + bin_width * F32(first)), np.asarray(low + bin_width * F32(last + 1))

    def reset_min_max_vals(self) -> None:
        """Forgets everything seen. (torch's refuses.)"""
        super().reset_min_max_vals()
        self.histogram.data = np.zeros(self.bins, F32)


# ---- counting and rebinning --------------------------------------------------------------------------------


def count(values: np.ndarray, bins: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How many values lie in each of `bins` equal bins; x lies in ``int(f(f((x-low)·bins) / f(high-low)))``.

    A single point gets the range ``low - 1 … high + 1``, or its float32 neighbours where they lie further
    away. Source: torch.histc, torch 2.13.
    """
    if low == high:
        low = np.minimum(low - F32(1), np.nextafter(low, F32(-np.inf)))
        high = np.maximum(high + F32(1), np.nextafter(high, F32(np.inf)))
    with np.errstate(over="ignore"):
        width = high - low
        if np.isinf(width):
            raise ValueError(f"HistogramObserver: float32 cannot hold the width of the range {low} … {high}")
        position = (values - low) * F32(bins) / width
    position = np.where(np.isinf(position), F32(0), position)  # torch's index wraps to 0 where this overflows
    index = np.minimum(position.astype(np.int64), bins - 1)
    return np.bincount(index.ravel(), minlength=bins).astype(F32)


def rebin(
    histogram: np.ndarray, old_low: np.ndarray, old_high: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The histogram of ``old_low … old_high`` over the wider range ``low … high``.

    Source: HistogramObserver._combine_histograms and _upscale_histogram, torch 2.13.
    """
    if (old_low, old_high) == (low, high):
        return histogram
    bins = histogram.size
    if old_low == old_high:
        return count(old_low, bins, low, high) * cascade_sum(histogram)
    parts = np.repeat(histogram, UPSAMPLE) / F32(UPSAMPLE)
    part_width = (old_high - old_low) / F32(parts.size)
    middles = linspace(old_low, old_high, parts.size + 1)[:-1] + F32(0.5) * part_width
    edges = linspace(low, high, bins + 1)
    index = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, bins - 1)
    rebinned = np.zeros(bins, F32)
    np.add.at(rebinned, index, parts)  # one float32 addition after the other, in order
    return rebinned


def linspace(low: np.ndarray, high: np.ndarray, n: int) -> np.ndarray:
    """`n` evenly spaced values: ``fma(step, i, low)``, and ``fma(-step, n-1-i, high)`` in the second half.

    Source: torch.linspace in float32, torch 2.13.
    """
    step = (high - low) / F32(n - 1)
    i = np.arange(n)
    return np.where(i < n // 2, fma(step, i, low), fma(-step, n - 1 - i, high))


# ---- the search --------------------------------------------------------------------------------------------


def search(histogram: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
    """First and last bin of the cut where the walk stops: the one before the first whose error is higher.

    Source: HistogramObserver._non_linear_param_search, torch 2.13.
    """
    best, least = (0, histogram.size - 1), np.inf
    cuts = walk(histogram)
    while some := list(islice(cuts, CUTS_AT_ONCE)):
        with np.errstate(all="ignore"):  # widths that are subnormal, or whose third power overflows
            errors = quantization_error(histogram, low, high, np.array(some))
        for cut, error in zip(some, errors, strict=True):
            if error > least:
                return best
            best, least = cut, error
    return best


def walk(histogram: np.ndarray) -> Iterator[tuple[int, int]]:
    """The cuts (first bin, last bin) in the order in which the search tries them, each inside the one before.

    `i` steps have been taken from the left and `j` from the right. One more would move the ends to `left`
    and `right`; the side that would cross more bins moves. Steps from the right that stay within the last
    bin move nothing, and a run of them is skipped at once.
    """
    first, last = 0, histogram.size - 1
    lefts, rights, alpha, beta = step_targets(histogram)
    falling = -rights
    i = j = 0
    while first < last and alpha[i] < beta[j]:
        left = min(max(lefts[i], first), last)
        right = max(min(rights[j], last), first)
        if left - first > last - right:
            first, i = left, i + 1
        elif right < last:
            last, j = right, j + 1
        else:
            j = int(np.searchsorted(falling, -last, side="right"))
            continue
        yield first, last


def step_targets(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where step i from the left, and from the right, leads; and the quantiles alpha, beta before each step.

    The quantiles are summed step by step in float64; the thresholds are rounded to float32.
    """
    steps = np.full(round(1 / STEP) + 2, STEP)
    alpha = np.cumsum(np.concatenate([[0.0], steps]))
    beta = np.cumsum(np.concatenate([[1.0], -steps]))
    cumulative = np.cumsum(histogram, dtype=np.float64).astype(F32)
    total = np.float64(cascade_sum(histogram))
    lefts = np.searchsorted(cumulative, (alpha[1:] * total).astype(F32), side="left")
    rights = np.searchsorted(cumulative, (beta[1:] * total).astype(F32), side="right") - 1
    return lefts, rights, alpha, beta


def quantization_error(histogram: np.ndarray, low: np.ndarray, high: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Squared error of each cut, float32 of shape ``(C,)``; the formula is step 4 of the module's text.

    Args:
        histogram: counts, ``(bins,)``.
        low: lower end of the histogram.
        high: upper end of the histogram.
        cuts: first and last bin of each cut, integers ``(C, 2)``.
    """
    bins = histogram.size
    width64 = (float(high) - float(low)) / bins
    if width64 == 0:
        return np.zeros(len(cuts), F32)
    first, last = cuts[:, :1], cuts[:, 1:]  # each (C, 1)
    cell64 = width64 * (last - first + 1) / GRID_CELLS
    width, cell, half = F32(width64), cell64.astype(F32), (cell64 / 2).astype(F32)

    begin = (np.arange(bins) - first).astype(F32) * width  # (C, bins), from the start of the cut
    end = begin + width
    begin_cell, end_cell = cell_of(begin, cell), cell_of(end, cell)
    density = histogram / width

    head = stretch(begin - (begin_cell + F32(0.5)) * cell, half)
    whole = stretch(-half, half)
    tail = stretch(-half, end - (end_cell * cell + half))
    error = density * head
    error += (end_cell - begin_cell - F32(1)) * (density * whole)
    error += density * tail
    return cascade_sum(error.T)


def cell_of(x: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Index of the grid cell that x lies in, ``clip(floor(x / cell), 0, 255)``, as float32.

    The quotient of two float32 numbers never rounds up to an integer in float64, so that the floor is exact.
    """
    return np.clip(np.floor(x / cell.astype(np.float64)), 0, GRID_CELLS - 1).astype(F32)


def stretch(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """``∫ t² dt = (end³ - begin³) / 3``."""
    return (end * end * end - begin * begin * begin) / F32(3)
