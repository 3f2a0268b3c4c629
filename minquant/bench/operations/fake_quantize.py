"""Fake quantization, forward and backward, of a million elements.

Scales are powers of two, inputs lie an eighth of a step or more from every tie, and gradients are small whole numbers,
so that every sum and every product is exact, and everybody's result the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from minquant import Tensor
from minquant.bench.job import Job
from minquant.bench.operation import Operation, Peer, Shape
from minquant.bench.torch_side import tensor
from minquant.quant import (
    FakeQuantize,
    LearnableFakeQuantize,
    MinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    PerTensor,
    QParams,
    QSpec,
    fake_quantize,
)

__all__ = ["OPERATIONS"]

SHAPES: dict[str, tuple[Shape, ...]] = {"a million": ((1024, 1024),)}
QMIN, QMAX = -128, 127
BEYOND = 12
"""Steps by which some inputs lie outside the grid."""


@dataclass(frozen=True)
class Batch:
    """An input, the gradient that comes in, and a signed 8-bit grid: one, or one a row."""

    x: np.ndarray
    grad: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    rounded: np.ndarray
    """Integers, before they are clipped, less the zero point."""

    @property
    def per_channel(self) -> bool:
        return self.scale.ndim > 0

    def steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale (… , 1) in float64, the clipped integers less the zero point, and where none was clipped."""
        scale, zero_point = (v.reshape(-1, 1) if v.ndim else v for v in (self.scale, self.zero_point))
        clipped = np.clip(self.rounded, QMIN - zero_point, QMAX - zero_point)
        return scale.astype(np.float64), clipped, clipped == self.rounded

    def expected(self) -> np.ndarray:
        """Values and gradient, one after the other."""
        scale, clipped, inside = self.steps()
        return np.concatenate([np.ravel(clipped * scale), np.ravel(self.grad * inside)])

    def learned(self) -> np.ndarray:
        """The gradients of scale and zero point, exact: see `minquant.quant.learnable`."""
        scale, clipped, inside = self.steps()
        by_scale = self.grad * np.where(inside, clipped - self.x / scale, clipped)
        by_zero_point = np.where(inside, 0, -self.grad * scale)
        axis = 1 if self.per_channel else None
        return np.concatenate([np.ravel(terms.sum(axis=axis)) for terms in (by_scale, by_zero_point)])


@lru_cache(maxsize=2)
def draw(per_channel: bool, beyond: int, shape: Shape) -> Batch:
    """Both ends of the grid are among the inputs; with `beyond`, and what lies outside."""
    rng = np.random.default_rng(shape)
    scale = 2.0 ** rng.integers(-7, -4, shape[0]) if per_channel else np.array(2.0**-6)
    zero_point = np.zeros(scale.shape, np.int32) if per_channel else np.array(3, np.int32)
    low, high = QMIN - int(zero_point.min()) - beyond, QMAX - int(zero_point.max()) + beyond
    rounded = rng.integers(low, high, shape, endpoint=True)
    eighths = rng.integers(-3, 3, shape, endpoint=True)
    eighths[(rounded == low) | (rounded == high)] = 0
    rounded[:, 0], rounded[:, 1], eighths[:, :2] = low, high, 0
    x = (rounded + eighths / 8) * (scale.reshape(-1, 1) if per_channel else scale)
    grad = rng.integers(-2, 2, shape, endpoint=True)
    return Batch(x.astype(np.float32), grad.astype(np.float32), scale.astype(np.float32), zero_point, rounded)


# ---- either side -----------------------------------------------------------------------------------------------------


def _leaf(array: np.ndarray) -> Tensor:
    return Tensor(array, requires_grad=True)


def _torch_leaf(array: np.ndarray) -> Any:
    return tensor(array).requires_grad_()


def _job(batch: Batch, leaf: Callable[[np.ndarray], Any], function: Callable[[Any], Any], learned: Any = ()) -> Job:
    """Forward and backward, with no gradient kept from the last time.

    Args:
        batch: what it works on.
        leaf: makes a library's tensor of an array.
        function: fake-quantizes one.
        learned: scale and zero point, if they have gradients too.
    """
    x, grad = leaf(batch.x), leaf(batch.grad).detach()
    leaves = (x, *learned)

    def call() -> Any:
        for each in leaves:
            each.grad = None
        y = function(x)
        y.backward(grad)
        return y

    def get(y: Any) -> np.ndarray:
        return np.concatenate([np.ravel(part.detach().numpy()) for part in (y, *(each.grad for each in leaves))])

    return Job(call, get, np.concatenate([batch.expected(), batch.learned()]) if learned else batch.expected())


# ---- the grid is given -----------------------------------------------------------------------------------------------


def ours(batch: Batch, variant: str) -> Job:
    """`minquant.quant.fake_quantize`."""
    spec = QSpec(symmetric=batch.per_channel, granularity=PerChannel() if batch.per_channel else PerTensor())
    grid = QParams(batch.scale, batch.zero_point, spec)
    return _job(batch, _leaf, lambda x: fake_quantize(x, grid))


def _torch(batch: Batch, threads: int) -> Job:
    import torch

    if batch.per_channel:
        grid = tensor(batch.scale), tensor(batch.zero_point), 0, QMIN, QMAX
        return _job(batch, _torch_leaf, lambda x: torch.fake_quantize_per_channel_affine(x, *grid))
    one = float(batch.scale), int(batch.zero_point), QMIN, QMAX
    return _job(batch, _torch_leaf, lambda x: torch.fake_quantize_per_tensor_affine(x, *one))


# ---- the grid is watched ---------------------------------------------------------------------------------------------


def observed(batch: Batch, variant: str) -> Job:
    """`FakeQuantize` in training: the range, the grid, and the rounding."""
    module = FakeQuantize(MinMaxObserver, QMIN, QMAX, dtype="qint8", qscheme="per_tensor_affine")
    return _job(batch, _leaf, module)


def _torch_observed(name: str, observer: str, batch: Batch, threads: int) -> Job:
    import torch
    import torch.ao.quantization as tq

    kind = {"dtype": torch.qint8, "qscheme": torch.per_tensor_affine}
    return _job(batch, _torch_leaf, getattr(tq, name)(getattr(tq, observer), QMIN, QMAX, **kind))


# ---- the grid is learned ---------------------------------------------------------------------------------------------


def _parameters(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as they are learned: float32, one or one a channel."""
    return np.atleast_1d(batch.scale), np.atleast_1d(batch.zero_point).astype(np.float32)


def learned(batch: Batch, variant: str) -> Job:
    """`LearnableFakeQuantize`, with the gradients of scale and zero point."""
    of = "channel" if batch.per_channel else "tensor"
    observer = PerChannelMinMaxObserver if batch.per_channel else MinMaxObserver
    module = LearnableFakeQuantize(observer, QMIN, QMAX, dtype="qint8", qscheme=f"per_{of}_affine")
    module.enable_param_learning()
    module.scale.data, module.zero_point.data = _parameters(batch)
    return _job(batch, _leaf, module, (module.scale, module.zero_point))


def _torch_learned(batch: Batch, threads: int) -> Job:
    import torch

    grid, axis = tuple(map(_torch_leaf, _parameters(batch))), (0,) if batch.per_channel else ()
    of = "channel" if batch.per_channel else "tensor"
    function = getattr(torch, f"_fake_quantize_learnable_per_{of}_affine")
    return _job(batch, _torch_leaf, lambda x: function(x, *grid, *axis, QMIN, QMAX, 1.0), grid)


# ---- all of them -----------------------------------------------------------------------------------------------------


def _operation(name: str, per_channel: bool, beyond: int, mine: Any, *peers: tuple[str, Any]) -> Operation:
    theirs = tuple(Peer(peer, peer, ("torch",), prepare) for peer, prepare in peers)
    return Operation(name, "rows×columns", SHAPES, partial(draw, per_channel, beyond), ("reference",), mine, theirs)


def _modules(*names: str) -> list[tuple[str, Any]]:
    kinds = {"FakeQuantize": "MinMaxObserver", "FusedMovingAvgObsFakeQuantize": "MovingAverageMinMaxObserver"}
    return [(f"torch.ao {name}", partial(_torch_observed, name, kinds[name])) for name in names]


OPERATIONS = (
    _operation("fake_quantize per tensor", False, BEYOND, ours, ("torch, per tensor", _torch)),
    _operation("fake_quantize per channel", True, BEYOND, ours, ("torch, per channel", _torch)),
    _operation("FakeQuantize", False, 0, observed, *_modules("FakeQuantize", "FusedMovingAvgObsFakeQuantize")),
    _operation(
        "LearnableFakeQuantize per tensor",
        False,
        BEYOND,
        learned,
        ("torch learnable, per tensor", _torch_learned),
    ),
    _operation(
        "LearnableFakeQuantize per channel",
        True,
        BEYOND,
        learned,
        ("torch learnable, per channel", _torch_learned),
    ),
)
