"""Gradients against numeric differences, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minquant import Tensor

STEP = 1e-3


def gradcheck(name: str, function: Callable[..., Tensor], arrays: Sequence[np.ndarray]) -> None:
    """Assert |analytic − numeric| <= 1e-8 + 1e-6 |numeric| for every element of every float input.

    The numeric derivative is the central difference of fourth order, whose truncation error, STEP⁴ f⁽⁵⁾/30,
    stays below 1e-11 where |f⁽⁵⁾| < 300, and whose rounding error is of the order of 1e-12. The output is
    reduced to a number with weights that differ from element to element.
    """
    arrays = [np.array(a, dtype=np.float64) if a.dtype.kind == "f" else a for a in arrays]
    inputs = [Tensor(a.copy(), requires_grad=a.dtype.kind == "f") for a in arrays]
    out = function(*inputs)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, out.shape)
    out.backward(weights)

    def loss(changed: int, array: np.ndarray) -> float:
        values = [array if i == changed else a for i, a in enumerate(arrays)]
        return float((function(*map(Tensor, values)).data * weights).sum())

    for i, t in enumerate(inputs):
        if t.requires_grad:
            analytic = np.zeros(t.shape) if t.grad is None else t.grad.data
            assert analytic.shape == t.shape, f"{name}: gradient of input {i} has shape {analytic.shape}"
            for index in np.ndindex(t.shape):
                _compare(name, i, index, analytic[index], _difference(loss, i, arrays[i], index))


def _difference(loss: Callable[[int, np.ndarray], float], i: int, array: np.ndarray, index: tuple) -> float:
    def at(offset: float) -> float:
        moved = array.copy()
        moved[index] += offset
        return loss(i, moved)

    return (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)


def _compare(name: str, i: int, index: tuple, analytic: float, numeric: float) -> None:
    assert abs(analytic - numeric) <= 1e-8 + 1e-6 * abs(numeric), (
        f"{name}: gradient of input {i} at {index}: expected {numeric!r} (by differences), got {analytic!r}"
    )
