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

from minquant.nn import Linear, Module, Parameter, init
from minquant.quant import FakeQuantize, FakeQuantizedLinear, QTensor, quantize
from minquant.quant.base_configs import BaseConfig
from minquant.quant.dialects import tinygemm
from minquant.quant.weighted import check_features, finite_input, real_input
from minquant.savable import savable
from minquant.tensor import Function, Tensor

__all__ = ["LoraLinear", "LoraLinearBase", "MergedLoraLinear"]

BLOCK = 256
"""Rows whose products stay in the cache until they are added."""


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

    The base multiplies integers, in train and in eval alike. It has no gradient; that of x is the float product's,
    straight through the rounding: ``G ŵ + (α/r)·(G B) A``, for which ŵ is made of the integers and then forgotten.

    Args:
        linear: the float layer; nothing of it is kept but its bias.
        config: what its integers are, once for all.
        rank: r.
        alpha: α.

    Attributes:
        base: the integer layer.
        lora_a: (r, in_features).
        lora_b: (out_features, r).

    Raises:
        ValueError: a config that observes its input while training, which integers cannot; else as `quantize_`.

    Source: torchtune.modules.peft.QATLoRALinear, torchtune 0.6, which keeps the base in float and rounds it at every
    call.
    """

    form = "light"
    base: Any

    def __init__(self, linear: Linear, config: BaseConfig, rank: int, alpha: float) -> None:
        super().__init__()
        prepared = FakeQuantizedLinear(linear, *config.fake_quantize_configs(), config.backend)
        prepared.check()
        if isinstance(prepared.activation_fake_quantizer, FakeQuantize):
            raise ValueError(f'{config} observes or clips its input, which this form does not; use form="merged"')
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.base = prepared.converted()
        self._add_adapter(rank, alpha, linear.in_features, linear.out_features)
        self.path = ""

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        array = real_input(x, self)
        check_features(array.shape, self)
        with finite_input(array, self):
            return LightProduct.apply(x, self.lora_a, self.lora_b, base=self.base, scaling=self.scaling)

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


class LightProduct(Function):
    """See `LoraLinear`, whose parts are one Function so that no intermediate result outlives it but ``x Aᵀ``."""

    floats_only = True

    def forward(self, x: np.ndarray, a: np.ndarray, b: np.ndarray, base: Any, scaling: float) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        y = base(rows).data
        inner = (rows @ a.T) * np.float32(scaling)  # (M, K) @ (K, r)
        add_product(y, inner, b.T)  # (M, r) @ (r, N)
        self.save(x, a, b, inner)
        self.weight, self.scaling = base.weight, scaling
        return y.reshape(*x.shape[:-1], -1)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, a, b, inner = self.saved
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        by_inner = (grad_rows @ b) * np.float32(self.scaling)  # (M, N) @ (N, r)
        by_x = None
        if self.needs_grad[0]:
            by_x = grad_rows @ self.weight.dequantize()  # (M, N) @ (N, K)
            add_product(by_x, by_inner, a)  # (M, r) @ (r, K)
            by_x = by_x.reshape(x.shape)
        return by_x, by_inner.T @ rows, grad_rows.T @ inner


def add_product(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """``out += a @ b``, a few rows after another."""
    for first in range(0, len(out), BLOCK):
        out[first : first + BLOCK] += a[first : first + BLOCK] @ b
