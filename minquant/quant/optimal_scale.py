"""The scale that loses least: the symmetric grid with the smallest squared error of rounding and clipping.

For weights w and a scale s the error is ``E(s) = Σ (w - s·q)²`` with ``q = clip(rint(w/s), qmin, qmax)``. The search is
exact, a sweep and no scan of candidates:

- As s falls from ∞ to 0, every integer starts at 0 and moves away from it; that of w reaches magnitude k where
  ``|w|/s = k - ½``. Between two such breakpoints no integer changes.
- While the integers stay, E is a parabola in s. Its lowest point lies at ``s = A/B`` with ``A = Σ w·q``, ``B = Σ q²``,
  and is ``Σ w² - A²/B``. A step to magnitude k adds ``|w|`` to A and ``k² - (k-1)² = 2k - 1`` to B.
- The lowest of these points is the minimum of E. E is nowhere below it, since E has everywhere the integers of some
  stretch; and E reaches it, since rounding at ``s = A/B`` errs at most as much as the integers that gave A and B.

So one sort of the ``n · 2^(bits-1)`` breakpoints of n weights, and two running sums (in float64), find it.
"""

from __future__ import annotations

import numpy as np

from .grid import EPS, check_finite, float_array
from .spec import PerChannel, PerToken, QParams, QSpec

__all__ = ["optimal_qparams"]


def optimal_qparams(x: np.ndarray, spec: QSpec) -> QParams:
    """The symmetric grid on which `x` loses least, for each tensor, channel of axis 0, or group.

    ``scale = argmin_s Σ (x - s · clip(rint(x/s), qmin, qmax))²``, at least 2⁻²³; see the module's text for the search.
    That scale is rounded to float32, which costs at most ``Σ q² · (scale · 2⁻²⁴)²``.

    Args:
        x: float array; computed in float64.
        spec: a symmetric signed grid.

    Returns:
        QParams; values that are all 0 get the scale 2⁻²³.

    Raises:
        TypeError: `x` is not of floating type.
        ValueError: a grid that is affine or unsigned; channels on another axis than 0, or tokens; NaN or infinity.
    """
    of = spec.granularity
    if not (spec.symmetric and spec.signed):
        raise ValueError(f"optimal_qparams: expected a symmetric signed grid, got {spec}")
    if isinstance(of, PerToken) or (isinstance(of, PerChannel) and of.axis != 0):
        raise ValueError(f"optimal_qparams: expected one scale in all, a channel of axis 0 or a group, got {of}")
    values = float_array(x, "optimal_qparams")
    check_finite(values, "optimal_qparams: x", "Did training diverge?")
    shape = of.qparams_shape(values.shape)
    rows = values.astype(np.float64).reshape(*shape, -1)  # what shares a scale lies side by side
    scale = np.apply_along_axis(_optimal_scale, -1, rows, spec.qmin, spec.qmax).astype(np.float32)
    return QParams(scale, np.zeros(shape, np.int32), spec)


def _optimal_scale(w: np.ndarray, qmin: int, qmax: int) -> float:
    """The scale for weights (n,) that share one."""
    size, step = [], []
    for sizes, most in ((w[w > 0], qmax), (-w[w < 0], -qmin)):
        k, sizes = np.meshgrid(np.arange(1, most + 1), sizes)  # (n, most)
        size.append(sizes.reshape(-1))
        step.append(2.0 * k.reshape(-1) - 1)
    steps, sizes = np.concatenate(step), np.concatenate(size)
    if not sizes.size:
        return float(EPS)
    order = np.argsort(-sizes / steps)  # the breakpoint is 2|w| / (2k - 1)
    a, b = np.cumsum(sizes[order]), np.cumsum(steps[order])
    best = np.argmax(a * a / b)
    return max(a[best] / b[best], float(EPS))
