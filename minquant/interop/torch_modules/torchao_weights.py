"""Layers on integers with torchao's tensors as weights; `minquant.interop.to_torchao` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor, PerRow, PerTensor
from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

from minquant import quant
from minquant.nn import Module
from minquant.quant import PerGroup, PerToken, QSpec, QTensor
from minquant.quant.dialects.tinygemm import TinygemmTensor
from minquant.quant.spec import PerTensor as OnePerTensor

__all__ = ["COVERED", "MAKERS"]

COVERED = (
    "covered are the Linears and Embeddings that quantize_ makes, but for Int4WeightOnlyConfig; float layers, "
    "containers, Llama"
)
PER_TOKEN_AFFINE = QSpec(granularity=PerToken())


# ---- weights ---------------------------------------------------------------------------------------------------------


def parts(weight: QTensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Integers (N, K), scales and zero points (N / rows, K / columns), and (rows, columns) of what shares one."""
    rows, columns = weight.shape
    granularity = weight.qparams.spec.granularity
    block: tuple[int, int] = (1, granularity.group_size if isinstance(granularity, PerGroup) else columns)
    if isinstance(granularity, OnePerTensor):
        block = rows, columns
    shape = (rows // block[0], columns // block[1])
    grid = weight.qparams.scale, weight.qparams.zero_point.astype(np.int8)
    scale, zero_point = (torch.tensor(np.array(values)).reshape(shape) for values in grid)
    return torch.tensor(np.array(weight.int_repr())), scale, zero_point, block


def intx(weight: QTensor, activations: str | None = None) -> Tensor:
    """As IntxUnpackedToInt8Tensor."""
    q, scale, zero_point, block = parts(weight)
    dtype = getattr(torch, f"int{weight.qparams.spec.bits}")
    return IntxUnpackedToInt8Tensor(q, scale, zero_point, dtype, block, torch.float32, activations)


def int8(weight: QTensor, of_input: Any, act_quant_scale: Tensor | None = None) -> Tensor:
    """As Int8Tensor."""
    q, scale, zero_point, block = parts(weight)
    kwargs = QuantizeTensorToInt8Kwargs(PerRow() if isinstance(of_input, PerToken) else PerTensor())
    return Int8Tensor(
        q, scale, list(block), torch.float32, zero_point=zero_point, act_quant_kwargs=kwargs,
        act_quant_scale=act_quant_scale,
    )  # fmt: skip


# ---- layers ----------------------------------------------------------------------------------------------------------


class RowsLinear(torch.nn.Linear):
    """A Linear that hands torchao rows: a static scale of torchao's must have as many axes as the input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)


def linear_with(weight: Tensor, layer: Any, kind: type[torch.nn.Linear] = torch.nn.Linear) -> torch.nn.Linear:
    """A torch.nn.Linear of this weight and the layer's bias."""
    new = kind(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    new.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        new.bias = torch.nn.Parameter(torch.tensor(np.array(layer.bias)), requires_grad=False)
    return new


def dynamic_linear(layer: Any, path: str) -> torch.nn.Linear:
    """Of a `DynamicQuantizedLinear`."""
    if layer.input_spec == PER_TOKEN_AFFINE:
        return linear_with(intx(layer.weight, "int8_asym_per_token"), layer)
    return linear_with(int8(layer.weight, layer.input_spec.granularity), layer)


def static_linear(layer: Any, path: str) -> torch.nn.Linear:
    """Of a `StaticActivationLinear`."""
    scale = torch.full((1, 1), layer.input_grid.scale.item())
    return linear_with(int8(layer.weight, OnePerTensor(), scale), layer, RowsLinear)


def weight_only_linear(layer: Any, path: str) -> torch.nn.Linear:
    """Of a `WeightOnlyQuantizedLinear`."""
    return linear_with(intx(layer.weight), layer)


def embedding(layer: Any, path: str) -> torch.nn.Embedding:
    """Of a `QuantizedEmbedding`."""
    new = torch.nn.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
    new.weight = torch.nn.Parameter(intx(layer.weight), requires_grad=False)
    return new


# ---- what torchao has no form for ------------------------------------------------------------------------------------


def no_intx(layer: Any) -> str:
    """Why a weight is no IntxUnpackedToInt8Tensor; "" if it is."""
    if isinstance(layer.weight, TinygemmTensor):
        return "torchao has tinygemm's weights (Int4WeightOnlyConfig) in bfloat16 on a GPU only; minquant's are float32"
    spec = layer.weight.qparams.spec if isinstance(layer.weight, QTensor) else layer.weight
    if not isinstance(spec, QSpec) or not spec.signed or (spec.qmin, spec.qmax) != full_range(spec):
        return f"torchao has signed integers of the full range, the weight has {spec}"
    return ""


def no_int8(layer: Any) -> str:
    """Why a weight is no Int8Tensor; "" if it is."""
    spec = layer.weight.qparams.spec
    if not (spec.signed and spec.symmetric and spec.bits == 8) or isinstance(spec.granularity, PerGroup):
        return f"beside symmetric inputs torchao has int8 weights, symmetric per channel or per tensor, not {spec}"
    return no_intx(layer)


def no_dynamic(layer: Any) -> str:
    """Why torchao has no such dynamic Linear; "" if it has."""
    spec = layer.input_spec
    if layer.backend not in ("intx", "torchao"):
        return f"is of the dialect {layer.backend!r}, torchao speaks 'torchao'; make it with quantize_"
    if spec == PER_TOKEN_AFFINE:
        return no_intx(layer)
    if layer.backend == "intx" or spec != QSpec(symmetric=True, granularity=spec.granularity):
        return f"torchao has no input {spec} in the dialect {layer.backend!r}"
    return no_int8(layer)


def no_static(layer: Any) -> str:
    """Why torchao has no such Linear with a static input; "" if it has."""
    if layer.backend != "torchao" or layer.input_grid.spec != QSpec(symmetric=True):
        return f"torchao has static inputs in int8, symmetric, not {layer.input_grid.spec} by {layer.backend!r}"
    return no_int8(layer)


def full_range(spec: QSpec) -> tuple[int, int]:
    """Its ends."""
    full = QSpec(spec.bits, spec.signed)
    return full.qmin, full.qmax


MAKERS: dict[type[Module], tuple[Callable[[Any, str], torch.nn.Module], Callable[[Any], str]]] = {
    quant.DynamicQuantizedLinear: (dynamic_linear, no_dynamic),
    quant.StaticActivationLinear: (static_linear, no_static),
    quant.WeightOnlyQuantizedLinear: (weight_only_linear, no_intx),
    quant.QuantizedEmbedding: (embedding, no_intx),
}
"""By minquant's class: what makes the torch module, and what says why it cannot, if it cannot."""
