"""A Linear whose weight has a scale for each group of K: group by group, or in one pass of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minquant.kernels import runs_compiled
from minquant.kernels.packed import GroupedWeight

from .integer import accumulate, check_room
from .qtensor import QTensor, unpack_bits
from .spec import PerGroup, QParams

__all__ = ["by_groups", "grouped_output", "weight_of_arrays", "weight_of_qtensor"]

Rule = Callable[[Any, Any, Any, Any], Any]

_WEIGHTS: WeakKeyDictionary[QTensor, GroupedWeight] = WeakKeyDictionary()


def grouped_output(
    qx: np.ndarray, x_scale: np.ndarray, zx: np.ndarray, weight: GroupedWeight, bias: np.ndarray, rule: Rule
) -> np.ndarray:
    """``y = rule(f(acc_g), sx, sw_g, y)`` for each group g in ascending order, from 0 on; then ``y + bias``.

    Args:
        qx: (M, K) int8 or uint8.
        x_scale: float32, one number or (M, 1).
        zx: zero point of x: one number or (M, 1).
        weight: (N, K).
        bias: (N,) float32.
        rule: the float arithmetic, of arrays and of vectors alike.

    Returns:
        (M, N) float32.

    Raises:
        ValueError: a group so long that its sum could leave int32.
    """
    if not runs_compiled():
        return by_groups(qx, x_scale, zx, weight, bias, rule)
    from minquant.kernels import grouped

    w_dtype = np.dtype(np.int8 if weight.signed else np.uint8)
    check_room(weight.size, qx.dtype, zx, w_dtype, weight.zero_point)
    return grouped.grouped_linear(qx, x_scale, zx, weight, bias, rule)


def by_groups(
    qx: np.ndarray, x_scale: np.ndarray, zx: np.ndarray, weight: GroupedWeight, bias: np.ndarray, rule: Rule
) -> np.ndarray:
    """`grouped_output` in NumPy: the specification of the kernel."""
    qw = weight.integers()
    y = np.zeros((len(qx), len(qw)), np.float32)
    for g in range(weight.scale.shape[1]):
        columns = slice(g * weight.size, (g + 1) * weight.size)
        acc = accumulate(qx[:, columns], zx, qw[:, columns], weight.zero_point[:, g])
        y = rule(acc.astype(np.float32), x_scale, weight.scale[:, g], y)
    return y + bias


def weight_of_arrays(integers: np.ndarray, qparams: QParams) -> GroupedWeight:
    """Integers (N, K) on a grid per group; nothing that could change is kept of them."""
    return _weight(integers, lambda: integers, qparams.scale, qparams.zero_point, qparams)


def weight_of_qtensor(weight: QTensor) -> GroupedWeight:
    """A quantized weight (N, K), unpacked once at most: what kernels make of it is kept."""
    if weight not in _WEIGHTS:
        storage, spec = weight.storage, weight.qparams.spec
        packed = partial(unpack_bits, storage, spec.bits, spec.signed, weight.shape)
        integers = packed if storage.shape != weight.shape else lambda: storage
        scale, zero_point = (np.array(terms) for terms in (weight.qparams.scale, weight.qparams.zero_point))
        scale.flags.writeable = zero_point.flags.writeable = False
        _WEIGHTS[weight] = _weight(storage, integers, scale, zero_point, weight.qparams)
    return _WEIGHTS[weight]


def _weight(
    storage: np.ndarray,
    integers: Callable[[], np.ndarray],
    scale: np.ndarray,
    zero_point: np.ndarray,
    qparams: QParams,
) -> GroupedWeight:
    spec = qparams.spec
    assert isinstance(spec.granularity, PerGroup)
    return GroupedWeight(storage, integers, scale, zero_point, spec.granularity.group_size, spec.bits, spec.signed)
