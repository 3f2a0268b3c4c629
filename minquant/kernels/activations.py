"""Activations, and what they pass on of a gradient, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.exponential import exp_below
from minquant.kernels.threads import in_parts

__all__ = ["relu_gradient", "silu", "silu_gradient"]

OPERATIONS, SILU = 34, 250
"""An element's, as `in_parts` counts them: two hundred of them take a nanosecond."""


def relu_gradient(out: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """0 where out is 0 or less, grad elsewhere; both float32, C-contiguous, of one shape."""
    by_x = np.empty(grad.shape, np.float32)
    flat = out.reshape(-1), grad.reshape(-1), by_x.reshape(-1)
    in_parts(lambda first, last: _relu_gradient(*flat, first, last), out.size, OPERATIONS * out.size)
    return by_x


@njit(cache=True, nogil=True)
def _relu_gradient(out, grad, by_x, first, last):  # type: ignore[no-untyped-def]
    outs, grads, to = out[first:last], grad[first:last], by_x[first:last]
    for i in range(len(outs)):
        to[i] = np.float32(0) if outs[i] <= 0 else grads[i]


def silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``x σ(x)`` and ``σ(x)``; float32, C-contiguous."""
    out, share = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    kernel, flat = _silu(), (x.reshape(-1), out.reshape(-1), share.reshape(-1))
    in_parts(lambda first, last: kernel(*flat, first, last), x.size, SILU * x.size)
    return out, share


@cache
def _silu() -> Callable[..., None]:
    exp, mark = prepare(exp_below), fingerprint(exp_below)

    @njit(cache=True, nogil=True, error_model="numpy")
    def kernel(x, out, share, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        values, to, shares = x[first:last], out[first:last], share[first:last]
        for i in range(len(values)):
            z = exp(-np.abs(values[i]))
            s = (np.float32(1) if values[i] >= 0 else z) / (np.float32(1) + z)
            shares[i], to[i] = s, values[i] * s

    return kernel


def silu_gradient(x: np.ndarray, share: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """``g σ (1 + x (1 − σ))``; all float32, C-contiguous, of one shape."""
    by_x = np.empty(grad.shape, np.float32)
    flat = x.reshape(-1), share.reshape(-1), grad.reshape(-1), by_x.reshape(-1)
    in_parts(lambda first, last: _silu_gradient(*flat, first, last), x.size, OPERATIONS * x.size)
    return by_x


@njit(cache=True, nogil=True)
def _silu_gradient(x, share, grad, by_x, first, last):  # type: ignore[no-untyped-def]
    values, shares, grads, to = x[first:last], share[first:last], grad[first:last], by_x[first:last]
    one = np.float32(1)
    for i in range(len(values)):
        to[i] = grads[i] * shares[i] * (one + values[i] * (one - shares[i]))
