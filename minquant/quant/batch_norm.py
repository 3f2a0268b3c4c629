"""Batch norm folded into the layer before it: after training once for all, in training at every step.

In eval a batch norm is an affine map of each channel, so that it and the Linear or Conv before it are one layer:

    ``γ (w·x + b - μ) / √(σ² + ε) + β = (w r γ)·x + ((b - μ) r γ + β)``,  ``r = 1 / √(σ² + ε)``

Quantization must see that one layer's weight, ``w r γ``. In training μ and σ² are the batch's, and unknown before the
product; so the product is that of the fake-quantized ``w r γ`` with the *running* r, which is divided out again before
the batch norm does its own. In eval, and once the statistics are frozen, the folded layer itself is computed, and
`convert` makes integers of just that.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2; torch.nn.utils.fuse_conv_bn_weights and
torch.ao.nn.intrinsic.qat.ConvBn2d, torch 2.13.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minquant import functional
from minquant.nn import BatchNorm1d, BatchNorm2d, Module, Parameter
from minquant.tensor import Tensor, no_grad

from .conv import QATConv1d, QATConv2d
from .fake_quant import FakeQuantize, disable_observer
from .fused import Fused
from .linear import QATLinear
from .weighted import QATWeighted

__all__ = [
    "QATConvBn1d",
    "QATConvBn2d",
    "QATConvBnReLU1d",
    "QATConvBnReLU2d",
    "QATLinearBn1d",
    "fold_batch_norm",
    "folded_layer",
    "freeze_bn_stats",
    "reestimate_bn_stats",
    "update_bn_stats",
]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def fold_batch_norm(weight: Tensor, bias: Tensor | None, bn: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that a Linear or Conv and a batch norm in eval are.

    ``w' = f(w · f(γ·r))``, ``b' = f(f(f(f(b - μ)·r)·γ) + β)`` with ``r = f(1/f(√f(σ² + ε)))``.

    Args:
        weight: (M, …).
        bias: (M,) or None.
        bn: the batch norm, with running statistics.

    Returns:
        Tensors of the same shapes, through which gradients reach weight, bias, γ and β.

    Raises:
        ValueError: a batch norm without running statistics.
    """
    inverse, gamma, beta = _inverse_deviation(bn), *_affine(bn)
    centred = (0.0 if bias is None else bias) - bn.running_mean
    return weight * _per_output(gamma * inverse, weight.ndim), centred * inverse * gamma + beta


def folded_layer(layer: Any, bn: Any) -> Any:
    """A copy of a Linear or Conv with the batch norm behind it folded in."""
    new = copy.deepcopy(layer)
    with no_grad():
        weight, bias = fold_batch_norm(layer.weight, layer.bias, bn)
    new.weight.data[...] = weight.data
    new.register_parameter("bias", Parameter(bias.data))
    return new


def _inverse_deviation(bn: Any) -> Tensor:
    if bn.running_var is None:
        raise ValueError(
            f"{type(bn).__name__} has no running statistics (track_running_stats=False), so there is nothing fixed to "
            "fold into the layer before it; train it with them"
        )
    return 1 / functional.sqrt(bn.running_var + bn.eps)


def _affine(bn: Any) -> tuple[Tensor, Tensor]:
    """γ and β; 1 and 0 where it has none."""
    ones = np.ones(bn.num_features, np.float32)
    return (
        Tensor(ones) if bn.weight is None else bn.weight,
        Tensor(0 * ones) if bn.bias is None else bn.bias,
    )


def _per_output(values: Tensor, ndim: int) -> Tensor:
    """(M,) -> (M, 1, …), which broadcasts against a weight."""
    return values.reshape(-1, *(1,) * (ndim - 1))


# ---- in training -----------------------------------------------------------------------------------------------------


class FoldsBatchNorm(QATWeighted):
    """A `QATWeighted` whose weight is that of the folded layer (see the module's text).

    Args:
        fused: the float layers whose Parameters and statistics are trained on; they are shared, not copied.
        weight_fake_quant: fake quantizer of the folded weight.
        backend: the dialect.

    Attributes:
        bn: the batch norm.
        bn_frozen: whether training uses the running statistics, as eval does. See `freeze_bn_stats`.
    """

    def __init__(self, fused: Fused, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__(fused.layer, weight_fake_quant, backend)
        self.bn: Any = fused.bn
        self.bn_frozen = False

    def forward(self, x: Tensor) -> Tensor:
        if self.bn_frozen or not self.training:
            return super().forward(x)
        y = self.bn(self._before_batch_norm(self.checked_input(x)))
        return functional.relu(y) if self.relu else y

    def folded(self) -> tuple[Tensor, Tensor]:
        return fold_batch_norm(self.weight, self.bias, self.bn)

    def _before_batch_norm(self, x: Tensor) -> Tensor:
        """``fq(w r γ)·x / (r γ) + b``; a channel whose γ is 0 gives b."""
        factor = _affine(self.bn)[0] * _inverse_deviation(self.bn)
        weight = self.fake_quantized(self.weight * _per_output(factor, self.weight.ndim))
        divisor = functional.where(factor == 0, 1.0, factor)
        y = self.product(x, weight, None)
        y = y / _per_output(divisor, self.weight.ndim - 1)  # (N, M, *places) / (M, 1, …)
        return y if self.bias is None else y + _per_output(self.bias, self.weight.ndim - 1)


class QATLinearBn1d(FoldsBatchNorm, QATLinear):
    """Linear and BatchNorm1d as one fake-quantized layer. Source: torch.ao.nn.intrinsic.qat.LinearBn1d, torch 2.13."""


class QATConvBn1d(FoldsBatchNorm, QATConv1d):
    """Conv1d and BatchNorm1d as one fake-quantized layer. Source: torch.ao.nn.intrinsic.qat.ConvBn1d, torch 2.13."""


class QATConvBn2d(FoldsBatchNorm, QATConv2d):
    """Conv2d and BatchNorm2d as one fake-quantized layer. Source: torch.ao.nn.intrinsic.qat.ConvBn2d, torch 2.13."""


class QATConvBnReLU1d(QATConvBn1d):
    """`QATConvBn1d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.qat.ConvBnReLU1d, torch 2.13."""

    relu = True


class QATConvBnReLU2d(QATConvBn2d):
    """`QATConvBn2d` with the ReLU fused in. Source: torch.ao.nn.intrinsic.qat.ConvBnReLU2d, torch 2.13."""

    relu = True


def freeze_bn_stats(module: Module) -> None:
    """``model.apply(freeze_bn_stats)``: train on with the running statistics, which then stand still.

    Source: torch.ao.nn.intrinsic.qat.freeze_bn_stats, torch 2.13; Krishnamoorthi 2018 (arXiv:1806.08342), section 3.2.
    """
    if isinstance(module, FoldsBatchNorm):
        module.bn_frozen = True


def update_bn_stats(module: Module) -> None:
    """``model.apply(update_bn_stats)``: the opposite of `freeze_bn_stats`."""
    if isinstance(module, FoldsBatchNorm):
        module.bn_frozen = False


def reestimate_bn_stats(model: Module, batches: Iterable[Any]) -> None:
    """Sets the running statistics to the mean of the batches', for the weights as they are now.

    A moving average lags behind weights that trained on, and at few bits an integer that flips moves a channel's mean
    by more than it did in float. Ranges and weights do not change, and every layer keeps its old running statistics
    until all batches have passed.

    Args:
        model: a float model or one that `prepare_qat` made; its mode is left as it was.
        batches: inputs, each as ``model(batch)`` takes it.

    Raises:
        ValueError: no batch norm with running statistics in the model; no batches.

    Source: Wu and Johnson 2021 (arXiv:2105.07576), section 3; Nagel et al. 2022 (arXiv:2203.11086), section 4.3.
    """
    layers: Any = [m for m in model.modules() if isinstance(m, BatchNorm1d | BatchNorm2d) and m.track_running_stats]
    if not layers:
        raise ValueError("reestimate_bn_stats: the model has no batch norm with running statistics")
    seen: dict[Module, list[tuple[np.ndarray, np.ndarray]]] = {bn: [] for bn in layers}
    handles = [bn.register_forward_hook(lambda bn, x, _: seen[bn].append(_statistics(x[0]))) for bn in layers]
    kept = {bn: [getattr(bn, name).data.copy() for name in STATISTICS] for bn in layers}
    try:
        with _only_statistics_move(model), no_grad():
            for batch in batches:
                model(batch)
                for bn in layers:
                    _set_statistics(bn, *kept[bn])
    finally:
        for handle in handles:
            handle.remove()
    if not any(seen.values()):
        raise ValueError("reestimate_bn_stats: expected at least one batch, got none")
    for bn in layers:
        if seen[bn]:
            _set_statistics(bn, *np.mean(seen[bn], axis=0), np.array(len(seen[bn])))


@contextmanager
def _only_statistics_move(model: Module) -> Iterator[None]:
    """While it lasts: training mode, ranges stand still, no batch norm is frozen."""
    was = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("training", "observer_enabled", "bn_frozen")
        if hasattr(module, name)
    ]
    try:
        model.train()
        model.apply(disable_observer)
        model.apply(update_bn_stats)
        yield
    finally:
        for module, name, value in was:
            setattr(module, name, value)


def _statistics(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of each channel of (N, C, …)."""
    values = np.moveaxis(x.data, 1, 0).reshape(x.shape[1], -1).astype(np.float64)  # (C, N·H·W)
    return values.mean(axis=1), values.var(axis=1, ddof=1)


def _set_statistics(bn: Any, *values: np.ndarray) -> None:
    for name, value in zip(STATISTICS, values, strict=True):
        buffer = getattr(bn, name)
        buffer.copy_(value.astype(buffer.dtype))
