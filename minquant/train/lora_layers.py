"""A Linear with a low-rank adapter, in two forms: beside a frozen base of integers, and rounded together with W.

    light    ``y = x̂ ŵᵀ + b + (α/r)·(x Aᵀ) Bᵀ``      ŵ stays, packed; A and B are float32
    merged   ``y = x̂ fq(W + (α/r)·B A)ᵀ + b``         W stays, in float32; the sum is rounded at every call

A is (r, in_features), B (out_features, r) and 0 at first, so that an adapter changes nothing before it has learned.

Sources: Hu et al. 2021 (LoRA); torchtune 0.6, torchtune.modules.peft.QATLoRALinear and its recipe
qat_lora_finetune_distributed.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.nn import Linear, Module, Parameter, init
from minquant.quant import FakeQuantizedLinear, QTensor, quantize
from minquant.quant.base_configs import BaseConfig
from minquant.quant.dialects import tinygemm
from minquant.quant.fake_quantizer import FakeQuantizerBase
from minquant.quant.grid import rounded
from minquant.quant.weighted import check_features, finite_input, real_input
from minquant.savable import savable
from minquant.tensor import Function, Tensor

__all__ = ["LoraLinear", "LoraLinearBase", "MergedLoraLinear"]


class LoraLinearBase:
    """What both forms share: A and B, and α/r."""

    form: str
    lora_a: Parameter
    lora_b: Parameter

    def _add_adapter(self, rank: int, alpha: float, in_features: int, out_features: int) -> None:
        self.rank, self.alpha = rank, alpha
        self.lora_a = Parameter(np.empty((rank, in_features), np.float32))
        self.lora_b = Parameter(np.zeros((out_features, rank), np.float32))
        init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """α/r."""
        return self.alpha / self.rank

    def frozen(self) -> np.ndarray:
        """What the adapter was trained beside, to know it again."""
        raise NotImplementedError

    def adapter(self) -> Tensor:
        """``(α/r)·B A``, (out_features, in_features)."""
        return (self.lora_b @ self.lora_a) * self.scaling  # (N, r) @ (r, K) -> (N, K)


@savable
class LoraLinear(LoraLinearBase, Module):
    """The light form: ``y = base(x) + (α/r)·(x Aᵀ) Bᵀ`` beside integers that stay as they are.

    In eval the base multiplies integers, exactly. In train it multiplies the real values behind them, x̂ and ŵ, in
    float32: the same product but for the rounding of its sums, and in less time. ŵ is made for each product and
    forgotten, and has no gradient; that of x is the float product's, straight through its rounding.

    Args:
        linear: the float layer; nothing of it is kept but its bias.
        config: what its integers are, once for all.
        rank: r.
        alpha: α.

    Attributes:
        base: the integer layer.
        activation_fake_quantizer: what rounds its input in train; None: nothing does.
        lora_a: (r, in_features).
        lora_b: (out_features, r).

    Raises:
        ValueError: a config that observes its input while training, which integers cannot; else as `quantize_`.

    Source: torchtune.modules.peft.QATLoRALinear, torchtune 0.6, which keeps the base in float and rounds it at every
    call.
    """

    form = "light"
    base: Any
    activation_fake_quantizer: Any

    def __init__(self, linear: Linear, config: BaseConfig, rank: int, alpha: float) -> None:
        super().__init__()
        prepared = FakeQuantizedLinear(linear, *config.fake_quantize_configs(), config.backend)
        prepared.check()
        activation = prepared.activation_fake_quantizer
        if not (activation is None or isinstance(activation, FakeQuantizerBase)):
            raise ValueError(
                f'{config} observes its input while training, which a base of integers cannot; use form="merged"'
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.base = prepared.converted()
        self.add_module("activation_fake_quantizer", activation)
        self._add_adapter(rank, alpha, linear.in_features, linear.out_features)
        self.path = ""

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        check_features(real_input(x, self).shape, self)
        with finite_input(real_input(x, self), self):
            y = FrozenLinear.apply(x, layer=self)
        return y + F.linear(F.linear(x, self.lora_a) * self.scaling, self.lora_b)  # (…, K) -> (…, r) -> (…, N)

    def base_product(self, x: np.ndarray) -> np.ndarray:
        """The base of x, in integers or, in train, in float32."""
        if not self.training:
            return self.base(x).data
        quantizer, rows = self.activation_fake_quantizer, x.reshape(-1, self.in_features)
        if quantizer is not None:
            rows = rounded(rows, quantizer.grid(rows))
        y = rows @ self.base.weight.dequantize().T
        y = y if self.base.bias is None else y + self.base.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def frozen(self) -> np.ndarray:
        return self.base.weight.storage

    def merged(self) -> Any:
        """The base with ``ŵ + (α/r)·B A`` rounded to the grid of ŵ; ValueError for NaN in the adapter."""
        weight = self.base.weight
        total = weight.dequantize() + self.adapter().data
        new = copy.copy(self.base)
        if isinstance(weight, QTensor):
            new.weight = quantize(total, weight.qparams)
        else:
            new.weight = tinygemm.TinygemmTensor(tinygemm.quantize(total, weight.qparams), weight.qparams)
        return new

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}"


@savable
class MergedLoraLinear(LoraLinearBase, FakeQuantizedLinear):
    """The merged form: a `FakeQuantizedLinear` whose weight is ``W + (α/r)·B A``, of which A and B are trained.

    It is a prepared layer like any other: in eval it computes what its integers compute, to the last bit.

    Args:
        linear: the float layer, whose weight is W.
        config: how the input and the sum are rounded.
        rank: r.
        alpha: α.

    Raises:
        ValueError: as `FakeQuantizedLinear`.
    """

    form = "merged"

    def __init__(self, linear: Linear, config: BaseConfig, rank: int, alpha: float) -> None:
        super().__init__(linear, *config.fake_quantize_configs(), config.backend)
        self._add_adapter(rank, alpha, linear.in_features, linear.out_features)
        self.check()

    def real_weight(self) -> Tensor:
        return self.weight + self.adapter()

    def frozen(self) -> np.ndarray:
        return self.weight.data

    def merged(self) -> Any:
        """The layer on the integers that it was trained on; errors as `FakeQuantizedLinear.converted`."""
        return self.converted()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}"


class FrozenLinear(Function):
    """``y = x̂ ŵᵀ + b`` of a `LoraLinear`'s base; dL/dx = G ŵ."""

    def forward(self, x: np.ndarray, layer: LoraLinear) -> np.ndarray:
        self.weight = layer.base.weight
        return layer.base_product(x)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        by_x = grad.reshape(-1, grad.shape[-1]) @ self.weight.dequantize()  # (M, N) @ (N, K) -> (M, K)
        return by_x.reshape(*grad.shape[:-1], -1)
