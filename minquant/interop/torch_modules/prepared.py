"""Layers in quantization-aware training as torch modules: float products of rounded operands, in any torch loop.

minquant multiplies the integers behind the operands; torch multiplies the operands. Both are the same to the last bit,
so that outputs differ by the rounding errors of one float sum (see `minquant.interop.to_torch`), and gradients, which
are those of the float product on both sides, likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minquant import nn, quant
from minquant.nn import Module
from minquant.quant import batch_norm, conv, embedding, linear
from minquant.quant.fake_quant import FakeQuantize
from minquant.quant.fake_quantizer import FakeQuantizerBase, IntxFakeQuantizer
from minquant.quant.observers import Observer as OwnObserver
from minquant.quant.stubs import GridDropout, LeaveGridStub

from .fake_quantizers import Chosen, Observed, Observer, OnHost, uncovered_fake_quantizer, uncovered_observer
from .twin import Twin

__all__ = ["twin_of"]


class Weighted(Twin):
    """What has a weight, and a bias or none."""

    def __init__(self, own: Any, path: str) -> None:
        super().__init__(own, path)
        for name in ("weight", "bias"):
            self.register_parameter(name, None)


# ---- what `quantize_` prepares ---------------------------------------------------------------------------------------


class FakeQuantizedLinear(Weighted):
    """minquant's: ``y = x̂ ŵᵀ + b``."""

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_fake_quantizer is not None:
            x = self.activation_fake_quantizer(x)
        return functional.linear(x, self.weight_fake_quantizer(self.weight), self.bias)


class FakeQuantizedEmbedding(Twin):
    """minquant's: rows of a rounded table."""

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.weight_fake_quantizer(self.weight), self.shell.padding_idx)


# ---- what `prepare_qat` prepares -------------------------------------------------------------------------------------


class QATWeighted(Weighted):
    """minquant's `QATWeighted`: a rounded weight, and an output that is watched and rounded."""

    product: Callable[..., Tensor]
    """The linear map of x, weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self.finished(self.product(x, self.weight_fake_quant(self.weight), self.bias))

    def finished(self, y: Tensor) -> Tensor:
        """The relu that is fused in, and the output's grid."""
        return self.activation_post_process(torch.relu(y) if self.shell.relu else y)


class QATLinear(QATWeighted):
    """minquant's `QATLinear` and `QATLinearReLU`."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)


class QATConv(QATWeighted):
    """minquant's `QATConv1d`, `QATConv2d` and the same with a ReLU."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own, slide = self.shell, functional.conv1d if self.shell.axes == 1 else functional.conv2d
        return slide(x, weight, bias, own.stride, own.padding, own.dilation, own.groups)


class FoldsBatchNorm(QATWeighted):
    """minquant's `FoldsBatchNorm`: the weight that is rounded is that of the folded layer."""

    def forward(self, x: Tensor) -> Tensor:
        bn, shape = self.bn, (-1, *(1,) * (self.weight.ndim - 1))
        inverse, gamma = self.inverse_deviation(), torch.ones_like(bn.running_var) if bn.weight is None else bn.weight
        weight = self.weight_fake_quant(self.weight * (gamma * inverse).reshape(shape))
        if self.shell.bn_frozen or not self.training:
            centred = (0 if self.bias is None else self.bias) - bn.running_mean
            bias = centred * inverse * gamma
            return self.finished(self.product(x, weight, bias if bn.bias is None else bias + bn.bias))
        factor = gamma * inverse
        y = self.product(x, weight, None) / torch.where(factor == 0, 1.0, factor).reshape(shape[:-1])
        return self.finished(bn(y if self.bias is None else y + self.bias.reshape(shape[:-1])))

    def inverse_deviation(self) -> Tensor:
        """``f(1/f(√f(σ² + ε)))``."""
        return 1 / torch.sqrt(self.bn.running_var + self.bn.eps)


class QATLinearBn(FoldsBatchNorm, QATLinear):
    """minquant's `QATLinearBn1d`."""


class QATConvBn(FoldsBatchNorm, QATConv):
    """minquant's `QATConvBn1d`, `QATConvBn2d` and the same with a ReLU."""


class QATEmbedding(Twin):
    """minquant's `QATEmbedding`."""

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.weight_fake_quant(self.weight), self.shell.padding_idx)


class WatchedStub(Twin):
    """minquant's `QuantStub` in training: where values come to lie on a grid."""

    def forward(self, x: Tensor) -> Tensor:
        return self.activation_post_process(x)


class Leave(Twin):
    """minquant's `LeaveGridStub`: the values as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Twin):
    """minquant's `GridDropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.shell.p, self.training)


class WatchedFunctional(Twin):
    """minquant's `FloatFunctional` in training: every result comes to lie on the same grid."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """X + y."""
        return self.activation_post_process(x + y)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """max(x + y, 0)."""
        return self.activation_post_process(torch.relu(x + y))

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """X · y."""
        return self.activation_post_process(x * y)

    add_scalar, mul_scalar = add, mul

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """X @ y over the last two axes."""
        return self.activation_post_process(x @ y)

    def cat(self, x: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The tensors of x joined along axis dim."""
        return self.activation_post_process(torch.cat(list(x), dim))


# ---- which is which --------------------------------------------------------------------------------------------------

TWINS: dict[type[Module], type[Twin]] = {
    quant.FakeQuantizedLinear: FakeQuantizedLinear,
    quant.FakeQuantizedEmbedding: FakeQuantizedEmbedding,
    linear.QATLinear: QATLinear,
    linear.QATLinearReLU: QATLinear,
    batch_norm.QATLinearBn1d: QATLinearBn,
    conv.QATConv1d: QATConv,
    conv.QATConv2d: QATConv,
    conv.QATConvReLU1d: QATConv,
    conv.QATConvReLU2d: QATConv,
    batch_norm.QATConvBn1d: QATConvBn,
    batch_norm.QATConvBn2d: QATConvBn,
    batch_norm.QATConvBnReLU1d: QATConvBn,
    batch_norm.QATConvBnReLU2d: QATConvBn,
    embedding.QATEmbedding: QATEmbedding,
    LeaveGridStub: Leave,
    GridDropout: Dropout,
}
WATCHED: dict[type[Module], type[Twin]] = {nn.QuantStub: WatchedStub, nn.FloatFunctional: WatchedFunctional}
"""Float modules whose output `prepare_qat` has watched."""


def twin_of(own: Any) -> tuple[type[Twin] | None, str]:
    """What stands for a module in training, None if it is not one; and why it cannot, if it cannot."""
    if isinstance(own, OwnObserver):
        return Observer, uncovered_observer(own)
    if isinstance(own, FakeQuantize):
        return Observed, uncovered_fake_quantizer(own)
    if isinstance(own, FakeQuantizerBase):
        return (Chosen if type(own) is IntxFakeQuantizer else OnHost), uncovered_fake_quantizer(own)
    if type(own) in TWINS:
        return TWINS[type(own)], _uncovered_dialect(own)
    if not hasattr(own, "qconfig"):
        return None, ""
    if not isinstance(getattr(own, "activation_post_process", None), FakeQuantize):
        return Leave, "is prepared, not converted: call convert first"
    if type(own) not in WATCHED:
        return Leave, (
            "in training it rounds its output only where its input lies on a grid, which torch's tensors do not tell; "
            "keep it in float, None in the qconfig"
        )
    return WATCHED[type(own)], _uncovered_dialect(own.qconfig)


def _uncovered_dialect(own: Any) -> str:
    backend = getattr(own, "backend", "reference")
    if backend in ("reference", "intx", "torchao"):
        return ""
    return f'is prepared in the dialect {backend}; training goes over in "reference", and as quantize_ prepares it'
