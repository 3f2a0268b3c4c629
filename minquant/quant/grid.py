"""The arithmetic of a quantization grid: range → scale and zero point → integers → real values again.

This is minquant's own dialect, ``"reference"``: one plain rule everywhere. How other engines depart from it
is told in `minquant.quant.dialects`. ``f()`` marks a rounding to float32, ``rint`` rounds half to even.

====================  =============================================================================
range                 ``lo = min(x_min, 0)``, ``hi = max(x_max, 0)``: real 0 must lie on the grid
scale, affine         ``s = max(f(f(hi - lo) / (qmax - qmin)), 2⁻²³)``
zero point, affine    ``z = clip(qmin - rint(f(lo / s)), qmin, qmax)``
scale, symmetric      ``s = max(f(max(-lo, hi) / ((qmax - qmin) / 2)), 2⁻²³)``
zero point, symmetric  0 for signed integers
quantize              ``q = clip(rint(f(x · f(1/s))) + z, qmin, qmax)``
dequantize            ``x̂ = f((q - z) · s)``
====================  =============================================================================

Inside the range, ``|x - x̂| ≤ s/2`` up to float32 rounding; on a symmetric grid of a full range too, though ``rint`` may
ask for ``qmax + 1`` at the positive end: x lies at ``qmax + 1/2`` then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import numpy as np

from minquant.kernels.choice import compiled
from minquant.tensor import Function, Tensor

from .spec import Granularity, QParams, QSpec

__all__ = ["choose_qparams", "fake_quantize"]

EPS = np.float32(2.0**-23)


def choose_qparams(x_min: Any, x_max: Any, spec: QSpec) -> QParams:
    """Scale and zero point of the grid that covers a range.

    Affine: ``s = max(f(f(hi-lo)/(qmax-qmin)), 2⁻²³)``, ``z = clip(qmin - rint(f(lo/s)))`` with
    ``lo = min(x_min, 0)``, ``hi = max(x_max, 0)``. Symmetric: ``s = max(f(amax/((qmax-qmin)/2)), 2⁻²³)``,
    ``z = 0`` (signed) with ``amax = max(-lo, hi)``.

    Args:
        x_min: smallest value of each tensor, channel, group or token; one number or an array.
        x_max: largest value, same shape.
        spec: the kind of grid.

    Returns:
        QParams with arrays of the shape of `x_min`.

    Raises:
        ValueError: NaN or infinity in the range, or ``x_min > x_max``.

    Source: torch.ao.quantization.observer.UniformQuantizationObserverBase._calculate_qparams, torch 2.13;
    Jacob et al. 2018 (arXiv:1712.05877), equation 1 and section 3.
    """
    low, high = np.asarray(x_min, np.float32), np.asarray(x_max, np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"choose_qparams: a range must be finite, got {low} … {high}")
    if (low > high).any():
        raise ValueError(f"choose_qparams: x_min must not exceed x_max, got {low} … {high}")
    lo, hi = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    with np.errstate(over="ignore"):  # a range wider than float32 gives an infinite scale, which QParams refuses
        if spec.symmetric:
            scale = symmetric_scale(lo, hi, spec.qmin, spec.qmax)
            return QParams(scale, np.full(scale.shape, spec.symmetric_zero_point, np.int32), spec)
        return QParams(*affine_grid(lo, hi, spec.qmin, spec.qmax), spec)


def affine_grid(
    lo: np.ndarray, hi: np.ndarray, qmin: int, qmax: int, eps: np.float32 = EPS
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the affine grid over ``lo … hi``, a range with 0 in it."""
    scale, below_zero = affine_terms(lo, hi, np.float32(qmax - qmin), eps)
    zero_point = np.int32(qmin) - below_zero.astype(np.int32)
    return np.asarray(scale), np.asarray(np.minimum(np.maximum(zero_point, np.int32(qmin)), np.int32(qmax)))


def affine_terms(lo: Any, hi: Any, steps: Any, eps: Any) -> tuple[Any, Any]:
    """Scale, and how many steps ``lo`` lies from 0, of arrays and of numbers inside kernels."""
    scale = np.maximum((hi - lo) / steps, eps)
    return scale, np.rint(lo / scale)


def symmetric_scale(lo: np.ndarray, hi: np.ndarray, qmin: int, qmax: int, eps: np.float32 = EPS) -> np.ndarray:
    """Scale of the symmetric grid over ``lo … hi``, a range with 0 in it."""
    half_the_steps = np.float32((qmax - qmin) / 2)
    return np.asarray(np.maximum(np.maximum(-lo, hi) / half_the_steps, eps))


def to_code(x: Any, inverse: Any, zero_point: Any) -> Any:
    """``rint(f(x · inverse)) + z``, of arrays and of numbers inside kernels."""
    return np.rint(x * inverse) + zero_point


def to_codes(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, rule: Callable[..., Any] = to_code
) -> np.ndarray:
    """``rint(f(x · f(1/s))) + z`` before clipping, float32; or what another engine's rule makes of x, f(1/s) and z."""
    with np.errstate(over="ignore"):  # an overflow to ±inf is clipped to the end of the grid, where it belongs
        return rule(x, np.float32(1) / scale, zero_point.astype(np.float32))


def to_integers(x: np.ndarray, qparams: QParams, rule: Callable[..., Any] = to_code) -> np.ndarray:
    """float32 values -> integers ``clip(rint(f(x · f(1/s))) + z, qmin, qmax)`` of the spec's dtype; `rule`: likewise.

    Raises:
        ValueError: NaN in `x`; a shape that does not fit the granularity.
    """
    kernels = compiled("fake_quantize", x.size)
    if kernels and x.dtype == np.float32:
        grid, dtype = kernel_grid(x, qparams), qparams.spec.dtype
        codes, has_nan = kernels.to_integers(np.asarray(x, order="C"), grid, dtype, rule)
        if has_nan:
            refuse_nan(x)
        return codes
    refuse_nan(x)
    spec = qparams.spec
    return np.clip(to_codes(x, *qparams.expand(x.shape), rule), spec.qmin, spec.qmax).astype(spec.dtype)


def to_own_grids(x: np.ndarray, spec: QSpec, eps: np.floating) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Integers of each row on the affine grid for its own range, with scales and zero points (…, 1), in one pass.

    None where no kernel runs, or where a row has no grid: whoever asks then goes the way that says why.
    """
    kernels = compiled("fake_quantize", x.size)
    if not kernels or x.dtype != np.float32 or not x.size:
        return None
    limits = (*(np.float32(v) for v in (spec.qmax - spec.qmin, spec.qmin, spec.qmax)), np.float32(eps))
    rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])
    found = kernels.to_own_grids(rows, spec.dtype, limits, (affine_terms, to_code))
    if found is None:
        return None
    codes, scale, zero_point = found
    shape = (*x.shape[:-1], 1)
    return codes.reshape(x.shape), scale.reshape(shape), zero_point.reshape(shape)


def kernel_grid(x: np.ndarray, qparams: QParams) -> tuple[Any, ...]:
    """The grid as kernels take it: how many neighbours in memory share a scale, and `QParams.flat`."""
    qparams.check_fits(x.shape)
    return qparams.spec.granularity.run(x.shape), *qparams.flat


def to_real(q: np.ndarray, qparams: QParams) -> np.ndarray:
    """Integers -> float32 values ``f((q - z) · s)``; the difference is exact."""
    scale, zero_point = qparams.expand(q.shape)
    return real_of(q.astype(np.float32), scale, zero_point.astype(np.float32))


def real_of(code: Any, scale: Any, zero_point: Any) -> Any:
    """``f((q - z) · s)``, of float32 arrays and of numbers inside kernels."""
    return (code - zero_point) * scale


def rounded(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """float32 values -> their neighbours on the grid; errors as `to_integers`."""
    kernels = compiled("fake_quantize", x.size)
    if not kernels or x.dtype != np.float32:
        return to_real(to_integers(x, qparams), qparams)
    grid, rules = kernel_grid(x, qparams), (to_code, real_of)
    out, _, has_nan = kernels.round_to_grid(np.asarray(x, order="C"), grid, None, rules)
    if has_nan:
        refuse_nan(x)
    return out


def rounded_and_integers(x: np.ndarray, qparams: QParams) -> tuple[np.ndarray, np.ndarray]:
    """`rounded` and `to_integers` of float32 values; errors as theirs."""
    kernels = compiled("fake_quantize", x.size)
    if not kernels:
        integers = to_integers(x, qparams)
        return to_real(integers, qparams), integers
    grid, dtype, rules = kernel_grid(x, qparams), qparams.spec.dtype, (to_code, real_of)
    out, integers, has_nan = kernels.rounded_and_integers(np.asarray(x, order="C"), grid, dtype, rules)
    if has_nan:
        refuse_nan(x)
    return out, integers


def refuse_nan(x: np.ndarray) -> None:
    """Refuses NaN, which a cast would turn into some integer.

    Raises:
        ValueError: there is one; the message says how many.
    """
    if np.isnan(x).any():
        raise ValueError(
            f"quantize: {np.isnan(x).sum()} of {x.size} values are NaN, for which a grid has no integer; find where "
            "they come from, or replace them"
        )


def check_finite(values: np.ndarray, what: str, what_to_do: str) -> None:
    """Refuses values that have no range.

    Raises:
        ValueError: NaN or infinity; the message says of what, and how many.
    """
    if not _all_finite(values):
        raise ValueError(
            f"{what} holds {np.isnan(values).sum()} NaN and {np.isinf(values).sum()} infinite values out of "
            f"{values.size}: no range, so no grid. {what_to_do}"
        )


def _all_finite(values: np.ndarray) -> bool:
    kernels = compiled("fake_quantize", values.size)
    if kernels and values.dtype == np.float32:
        return bool(kernels.all_finite(np.asarray(values, order="C")))
    return bool(np.isfinite(values).all())


def range_of(x: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest of the values that share a scale: NaN where there is one."""
    kernels = compiled("fake_quantize", x.size)
    if not kernels or x.dtype != np.float32:
        return granularity.min_max(x)
    shape = granularity.qparams_shape(x.shape)
    low, high = kernels.min_max(np.asarray(x, order="C"), granularity.run(x.shape), math.prod(shape))
    return low.reshape(shape), high.reshape(shape)


class RoundToGrid(Function):
    """``f((clip(rint(f(x · f(1/s))) + z) - z) · s)``; the gradient passes where x lies in the range."""

    def forward(
        self, x: np.ndarray, qparams: QParams, x_min: np.ndarray | None, x_max: np.ndarray | None
    ) -> np.ndarray:
        kernels = compiled("fake_quantize", x.size)
        if kernels and x.dtype == np.float32:
            return self._compiled(kernels, x, qparams, x_min, x_max)
        if x_min is None or x_max is None:
            codes = to_codes(x.astype(np.float32), *qparams.expand(x.shape))
            inside = (qparams.spec.qmin <= codes) & (codes <= qparams.spec.qmax)
        else:
            granularity = qparams.spec.granularity
            lo, hi = straight_through_range(x_min, x_max, qparams.spec)
            inside = (granularity.expand(lo, x.shape) <= x) & (x <= granularity.expand(hi, x.shape))
        self.save(inside)
        return to_real(to_integers(float_array(x, "fake_quantize"), qparams), qparams).astype(x.dtype, copy=False)

    def _compiled(
        self, kernels: Any, x: np.ndarray, qparams: QParams, x_min: np.ndarray | None, x_max: np.ndarray | None
    ) -> np.ndarray:
        """`forward` in one pass; the range has no ends where clipping alone decides about the gradient."""
        ends = None
        if x_min is not None and x_max is not None:
            ends = tuple([end.reshape(-1) for end in straight_through_range(x_min, x_max, qparams.spec)])
        grid, rules = kernel_grid(x, qparams), (to_code, real_of)
        out, inside, has_nan = kernels.round_to_grid(np.asarray(x, order="C"), grid, ends, rules)
        if has_nan:
            refuse_nan(x)
        self.save(inside)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (inside,) = self.saved
        kernels = compiled("fake_quantize", grad.size)
        if kernels and grad.dtype == np.float32:
            return kernels.masked(np.asarray(grad, order="C"), inside)
        return grad * inside


class StraightThrough(Function):
    """`values` in the place of x, whose gradient passes unchanged."""

    def forward(self, x: np.ndarray, values: np.ndarray) -> np.ndarray:
        return values.astype(x.dtype, copy=False)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad


def round_to_own_grid(x: Tensor, qparams: QParams) -> Tensor:
    """`fake_quantize` on a grid that was chosen from x itself, in whose range all of x lies: every gradient passes.

    The result keeps its integers, for whoever multiplies them.
    """
    values, integers = rounded_and_integers(float_array(x, "fake_quantize"), qparams)
    out = StraightThrough.apply(x, values=values)
    out.qparams, out.integers = qparams, integers
    return out


def straight_through_range(x_min: np.ndarray, x_max: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray]:
    """Where the straight-through gradient passes: the observed range with 0; symmetric, ``|x| ≤ amax``."""
    lo, hi = np.minimum(x_min, np.float32(0)), np.maximum(x_max, np.float32(0))
    if spec.symmetric:
        hi = np.maximum(-lo, hi)
        lo = -hi
    return lo, hi


@overload
def fake_quantize(x: Tensor, qparams: QParams, x_min: Any = None, x_max: Any = None) -> Tensor: ...
@overload
def fake_quantize(x: np.ndarray, qparams: QParams, x_min: Any = None, x_max: Any = None) -> np.ndarray: ...
def fake_quantize(x: Any, qparams: QParams, x_min: Any = None, x_max: Any = None) -> Any:
    """Real values -> the nearest values of the grid, still as real values: ``dequantize(quantize(x))``.

    Args:
        x: float array or Tensor.
        qparams: the grid.
        x_min: smallest and `x_max` largest value of the range that the grid was chosen for, of the shape of
            ``qparams.scale``. The straight-through gradient of a Tensor passes where x lies in this range
            (symmetric: where ``|x| ≤ amax``), so that the element that set the range is never frozen.
            Without them it passes where the integer needs no clipping, which is torch's rule.
        x_max: see `x_min`.

    Returns:
        What `x` was: an array, or a Tensor that remembers the grid in its `qparams`.

    Raises:
        TypeError, ValueError: as `quantize`.

    Source: torch.fake_quantize_per_tensor_affine, torch 2.13 (forward); Bengio et al. 2013 (arXiv:1308.3432) for
    the straight-through estimator.
    """
    array = float_array(x, "fake_quantize")
    if not isinstance(x, Tensor):
        return rounded(array, qparams)
    out = RoundToGrid.apply(x, qparams=qparams, x_min=x_min, x_max=x_max)
    out.qparams = qparams
    return out


def float_array(x: Any, where: str) -> np.ndarray:
    """The float32 array of an array or Tensor; anything but floating point is refused.

    Raises:
        TypeError: integers, booleans or objects.
    """
    array = x.data if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{where}: expected floating point values (float32), got {array.dtype}; convert with .astype(np.float32)"
        )
    return array.astype(np.float32, copy=False)
